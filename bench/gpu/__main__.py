"""`make bench-gpu`: how near the GPU path comes to what the device can do, and to others on it.

python -m bench.gpu                              # everything, in about six minutes
python -m bench.gpu --save-dir build/gpu         # figures as JSON there, one file a suite
python -m bench.gpu --device cpu --tiny          # no GPU: shows that it runs, measures nothing
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.gpu.device import facts, find
from bench.gpu.packages import missing
from bench.recording import save

GRACE_S = 45.0
"""A part that was begun in time may take so much longer."""


@dataclass(frozen=True, slots=True)
class _Kind:
    about: str
    needs: tuple[str, ...]


_KERNELS_NEED = ("numpy", "torch", "triton")
_LOOP_NEEDS = ("llguidance", "prometheus-client", "protobuf", "safetensors", *_KERNELS_NEED)
_STACK_NEEDS = (
    *("grpcio", "grpcio-health-checking", "grpcio-reflection", "httptools", "huggingface-hub"),
    *("jinja2", "numba", "pydantic", "starlette", "tokenizers", "transformers", "uvicorn"),
    *("uvloop", *_LOOP_NEEDS),
)
SUITES = {
    "kernels": _Kind("kernels alone, against copying and multiplying", _KERNELS_NEED),
    "steps": _Kind("whole steps, against reading weights and KV", _LOOP_NEEDS),
    "served": _Kind("the whole stack, and peers on the same weights", _STACK_NEEDS),
}


def main(
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="So little that any CPU will do.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for everything.")] = 360.0,
    save_dir: Annotated[Path, typer.Option(help="Figures go here as JSON.")] = Path("build/gpu"),
    suite: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
) -> None:
    """Runs each suite in a process of its own; what fails in one is noted, the others go on."""
    names = suite or list(SUITES)
    try:
        found = find(device)
        unknown = sorted(set(names) - set(SUITES))
        if unknown:
            raise RuntimeError(f"suite is {unknown[0]}; there are {', '.join(SUITES)}")
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from None
    ends_at = time.monotonic() + time_limit
    failed = []
    for name in names:
        file = save_dir / f"{name}.json"
        file.unlink(missing_ok=True)
        print(f"== {SUITES[name].about} (python -m bench.gpu.{name})", flush=True)
        arguments = ["--device", device, "--save", str(file), *(["--tiny"] if tiny else [])]
        reason = _run(name, arguments, ends_at)
        if reason is not None:
            failed.append(name)
            _note(file, reason, found)
        print(flush=True)
    _sum_up(save_dir, names)
    raise typer.Exit(1 if failed else 0)


def _run(name: str, arguments: list[str], ends_at: float) -> str | None:
    """Why the suite is not complete, if it is not."""
    absent = missing(SUITES[name].needs)
    if absent:
        return f"needs {', '.join(absent)}, not installed here"
    left = ends_at - time.monotonic()
    if left <= 0:
        return "time was up before it began"
    command = [sys.executable, "-m", f"bench.gpu.{name}", *arguments, "--time-limit", f"{left:.0f}"]
    try:
        done = subprocess.run(command, check=False, timeout=left + GRACE_S)
    except subprocess.TimeoutExpired:
        return f"stopped after {left + GRACE_S:.0f} s"
    return None if done.returncode == 0 else f"ended with code {done.returncode}"


def _note(file: Path, error: str, device: torch.device) -> None:
    """Leaves what was measured before, with the reason why there is no more."""
    if not file.is_file():
        save({}, [], file, facts(device))
    record = {"error": error, **json.loads(file.read_text())}
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
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
