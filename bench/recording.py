"""Prints figures for people, and keeps them with the machine, versions, commit and command."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quire.bench.report import cpu_name

_PACKAGES = ("torch", "transformers", "grpcio", "protobuf", "numpy", "numba")


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised: at least, or at most, so much."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """For people."""
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        bound = "at least" if self.at_least else "at most"
        return f"{self.value:,.4g}, {bound} {self.limit:,.4g}: {'met' if met else 'MISSED'}"


def report(
    figures: dict[str, Any], targets: Sequence[Target] = (), save: Path | None = None
) -> None:
    """Prints nested figures and what became of targets; with `save`, also writes them as JSON."""
    shown = {**figures, "targets": {target.name: target.verdict for target in targets}}
    _print(shown if targets else figures)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python", *sys.orig_argv[1:]])
        record = {"command": command, **provenance(), "figures": shown if targets else figures}
        save.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def provenance() -> dict[str, Any]:
    """Where and with what the figures were taken."""
    return {
        "taken_at": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "-s", "-uno") else ""),
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.system(),
            "load_before": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    return done.stdout.strip()


def _print(figures: dict[str, Any], indent: str = "") -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print(value, indent + "  ")
        else:
            shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
            print(f"{indent}{name:<56} {shown}")
