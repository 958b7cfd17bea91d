"""`make bench-gpu`: how near the GPU path comes to what the device can do, and to others on it.

python -m bench.gpu                              # everything, in about six minutes
python -m bench.gpu --save-dir build/gpu         # figures as JSON there, one file a suite
python -m bench.gpu --device cpu --tiny          # no GPU: shows that it runs, measures nothing
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

SUITES = {
    "kernels": "kernels alone, against copying and multiplying",
    "steps": "whole steps, against reading weights and KV",
    "served": "the whole stack, and peers on the same weights",
}
_GRACE_S = 45.0
"""A part that was begun in time may take so much longer."""


def main(
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="So little that any CPU will do.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for everything.")] = 360.0,
    save_dir: Annotated[Path, typer.Option(help="Figures go here as JSON.")] = Path("build/gpu"),
    suite: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
) -> None:
    """Runs each suite in a process of its own; what fails in one is noted, the others go on."""
    ends_at = time.monotonic() + time_limit
    failed = []
    for name in suite or SUITES:
        file = save_dir / f"{name}.json"
        left = max(1.0, ends_at - time.monotonic())
        arguments = ["--device", device, "--save", str(file), "--time-limit", f"{left:.0f}"]
        arguments += ["--tiny"] if tiny else []
        print(f"== {SUITES[name]} (python -m bench.gpu.{name})", flush=True)
        file.unlink(missing_ok=True)
        error = _run(name, arguments, left + _GRACE_S)
        if error is not None:
            failed.append(name)
            _note(file, error)
        print(flush=True)
    _sum_up(save_dir, suite or list(SUITES))
    raise typer.Exit(1 if failed else 0)


def _run(name: str, arguments: list[str], patience_s: float) -> str | None:
    """Why the suite is not complete, if it is not."""
    command = [sys.executable, "-m", f"bench.gpu.{name}", *arguments]
    try:
        done = subprocess.run(command, check=False, timeout=patience_s)
    except subprocess.TimeoutExpired:
        return f"stopped after {patience_s:.0f} s"
    return None if done.returncode == 0 else f"ended with code {done.returncode}"


def _note(file: Path, error: str) -> None:
    """Leaves what was measured before, with the reason why there is no more."""
    record: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"error": error, **record}, indent=2, ensure_ascii=False) + "\n")
    print(f"error: {error}", flush=True)


def _sum_up(save_dir: Path, names: list[str]) -> None:
    print("== targets")
    for name in names:
        record = json.loads((save_dir / f"{name}.json").read_text())
        for target, verdict in record.get("figures", {}).get("targets", {}).items():
            print(f"{target:<72} {verdict}")
        parts = record.get("figures", {}).items()
        errors = {part: found["error"] for part, found in parts if "error" in found}
        for part, error in errors.items():
            print(f"{name}: {part}: {error}")
        if "error" in record and not errors:
            print(f"{name}: {record['error']}")


if __name__ == "__main__":
    typer.run(main)
