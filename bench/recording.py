"""Prints figures for people, and keeps them with the machine, versions, commit and command."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quire.bench.report import cpu_name

_PACKAGES = ("torch", "triton", "transformers", "vllm", "grpcio", "protobuf", "numpy", "numba")


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
        bound = "at least" if self.at_least else "at most"
        met = "met" if self.is_met() else "MISSED"
        return f"{self.value:,.4g}, {bound} {self.limit:,.4g}: {met}"

    def is_met(self, slack: float = 1.0) -> bool:
        """Or missed by no more than this factor."""
        if self.at_least:
            return self.value >= self.limit / slack
        return self.value <= self.limit * slack


def report(
    figures: dict[str, Any],
    targets: Sequence[Target] = (),
    destination: Path | None = None,
) -> None:
    """Prints nested figures and what became of targets; with a destination, also keeps them."""
    _print(_shown(figures, targets))
    if destination is not None:
        save(figures, targets, destination)


def save(
    figures: dict[str, Any],
    targets: Sequence[Target],
    destination: Path,
    device: Mapping[str, Any] | None = None,
) -> None:
    """Writes them as JSON; `device` adds to what is said of the machine."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    record = provenance(device or {})
    command = " ".join(["python", *sys.orig_argv[1:]])
    record = {"command": command, **record, "figures": _shown(figures, targets)}
    destination.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _shown(figures: dict[str, Any], targets: Sequence[Target]) -> dict[str, Any]:
    if not targets:
        return figures
    return {**figures, "targets": {target.name: target.verdict for target in targets}}


def provenance(device: Mapping[str, Any]) -> dict[str, Any]:
    """Where and with what the figures were taken."""
    return {
        "taken_at": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _commit(),
        "machine": {
            **device,
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.system(),
            "load_before": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _commit() -> str:
    """Of the checkout; a copy without one may be told by the environment."""
    commit = _git("rev-parse", "--short", "HEAD")
    if not commit:
        return os.environ.get("COMMIT", "unknown")
    return commit + ("+" if _git("status", "-s", "-uno") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _print(figures: dict[str, Any], indent: str = "") -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print(value, indent + "  ")
        else:
            shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
            print(f"{indent}{name:<56} {shown}")
