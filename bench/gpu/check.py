"""`make gpu-check`: whether everything works on this machine's GPU, and how fast, in nine minutes.

    python -m bench.gpu.check                          tests on the device, then `bench.gpu`
    python -m bench.gpu.check --device cpu --tiny      no GPU: a few tests, and that all of it runs

Tests come first, many processes at a time: most of their time is the compiler's. The benchmark then
has the device for itself. What fails takes nothing else along; each suite leaves one JSON file.

Of pytest's plugins none is asked for, and none that happens to be there is used.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.gpu.__main__ import GRACE_S
from bench.gpu.device import facts, find
from bench.gpu.packages import missing
from bench.recording import save

_ROOT = Path(__file__).parents[2]
_TEST_S = 150.0
"""Tests may take so long; the benchmark gets the rest."""
_KERNELS_NEED = ("numpy", "pytest", "torch", "triton")
_LOOP_NEEDS = (
    *("llguidance", "numba", "prometheus-client", "protobuf", "safetensors", "transformers"),
    *_KERNELS_NEED,
)
_PYTEST = (
    sys.executable,
    *("-m", "pytest", "-q", "--import-mode=importlib", "--tb=short"),
    # Plugins' options would be errors without them, and other versions warn of other things.
    *("-o", "addopts=", "-o", "filterwarnings=default"),
    *("-p", "no:cacheprovider", "-p", "bench.gpu.outcomes"),
)


@dataclass(frozen=True, slots=True)
class Suite:
    """Some of the tests.

    Attributes:
        name: of its file.
        about: for people.
        arguments: pytest's.
        needs: packages without which it cannot begin.
        num_shares: processes that share it.
    """

    name: str
    about: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = _LOOP_NEEDS
    num_shares: int = 1


_KERNELS, _STEPS = "tests/kernels/gpu", "tests/worker/models/test_whole_steps.py"
SUITES = (
    Suite(
        "tests_models",
        "each family through the worker's loop, against transformers",
        (_STEPS, f"{_KERNELS}/test_models.py", f"{_KERNELS}/test_device_runner.py"),
        num_shares=6,
    ),
    Suite(
        "tests_kernels",
        "each kernel against its specification",
        (
            _KERNELS,
            # Compiles for GPUs that are not here, which needs none.
            f"--ignore={_KERNELS}/test_compiled.py",
            f"--ignore={_KERNELS}/test_models.py",
            f"--ignore={_KERNELS}/test_device_runner.py",
        ),
        needs=_KERNELS_NEED,
        num_shares=6,
    ),
    Suite("tests_no_sync", "nothing waits between plans", ("tests/worker/test_no_sync.py",)),
)
TINY = {
    "tests_models": (_STEPS, "-k", "qwen3"),
    "tests_kernels": (f"{_KERNELS}/test_norm.py", f"{_KERNELS}/test_block_copy.py"),
}


@dataclass(frozen=True, slots=True)
class Share:
    """One process of a suite, when it has ended.

    Attributes:
        lines: that `bench.gpu.outcomes` wrote.
        seconds: it took.
        error: why it did not come to its end; None where it did.
        output: what it printed.
    """

    lines: list[dict[str, Any]]
    seconds: float
    error: str | None
    output: str


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="So little that any CPU will do.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds for everything.")] = 530.0,
    save_dir: Annotated[Path, typer.Option(help="Results go here as JSON.")] = Path("build/gpu"),
) -> None:
    """Runs the suites of tests, then the benchmark; exits with 1 if anything failed."""
    ends_at = time.monotonic() + time_limit
    try:
        found = find(device)
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from None
    save_dir.mkdir(parents=True, exist_ok=True)
    suites = [replace(s, arguments=TINY.get(s.name, s.arguments), num_shares=1) for s in SUITES]
    tests_end_at = min(time.monotonic() + _TEST_S, ends_at)
    passed = _test(suites if tiny else SUITES, found, save_dir, tests_end_at)
    left = max(1.0, ends_at - GRACE_S - time.monotonic())
    command = [sys.executable, "-m", "bench.gpu", "--device", device, "--save-dir", str(save_dir)]
    command += ["--time-limit", f"{left:.0f}", *(["--tiny"] if tiny else [])]
    measured = subprocess.run(command, check=False, cwd=_ROOT).returncode == 0
    raise typer.Exit(0 if passed and measured else 1)


def _test(suites: Sequence[Suite], device: torch.device, save_dir: Path, ends_at: float) -> bool:
    """Whether all went well; leaves a file for each suite, and one log of those that failed."""
    log = save_dir / "tests.log"
    log.unlink(missing_ok=True)
    machine, good = facts(device), True
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(_num_cores()) as pool:
        started = [
            [
                pool.submit(run_share, suite, number, device, Path(directory), ends_at)
                for number in range(1, suite.num_shares + 1)
            ]
            for suite in suites
        ]
        for suite, futures in zip(suites, started, strict=True):
            shares = [future.result() for future in futures]
            figures = summed_up(shares)
            save(figures, [], save_dir / f"{suite.name}.json", machine)
            _show(suite, figures)
            if not figures["good"]:
                good = False
                with log.open("a") as file:
                    file.writelines(share.output for share in shares)
    if not good:
        print(f"what the failed suites printed is in {log}", flush=True)
    return good


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def run_share(
    suite: Suite, number: int, device: torch.device, directory: Path, ends_at: float
) -> Share:
    """Runs one share, in a process that has until then."""
    absent = missing(suite.needs)
    if absent:
        return Share([], 0.0, f"needs {', '.join(absent)}, not installed here", "")
    on_gpu = device.type == "cuda"
    outcomes, printed = (directory / f"{suite.name}.{number}.{kind}" for kind in ("jsonl", "log"))
    outcomes.touch()
    command = [
        *_PYTEST,
        *("-m", "not slow" if on_gpu else "not slow and not gpu"),
        *("--basetemp", str(directory / f"{suite.name}.{number}")),
        *("--outcomes", str(outcomes), "--share", f"{number}/{suite.num_shares}"),
        *suite.arguments,
    ]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONUNBUFFERED": "1"}
    if not on_gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    began, error = time.monotonic(), None
    with printed.open("w") as output:
        try:
            code = subprocess.run(
                command,
                check=False,
                cwd=_ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, ends_at - began),
            ).returncode
            # 1: tests failed, and which is written; 5: this share is empty.
            error = None if code in (0, 1, 5) else f"pytest ended with code {code}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {time.monotonic() - began:.0f} s"
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    return Share(lines, time.monotonic() - began, error, printed.read_text(errors="replace"))


def summed_up(shares: Iterable[Share]) -> dict[str, Any]:
    """A suite's figures: how many tests ended how, which failed and why, what was cut off."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failing, errors, skipped_for = {}, [], set()
    num_selected, seconds = 0, 0.0
    for share in shares:
        ended: dict[str, str] = {}
        newest = ""
        for line in share.lines:
            num_selected += line.get("selected", 0)
            newest = f"; the newest test was {line['begun']}" if "begun" in line else newest
            if "id" in line:
                # What fails while it is set up or taken down fails whatever else is said of it.
                if ended.get(line["id"]) != "failed":
                    ended[line["id"]] = line["outcome"]
                if line["outcome"] == "failed":
                    failing[line["id"]] = line["why"]
                if line["outcome"] == "skipped":
                    skipped_for.add(line["why"])
        for outcome in ended.values():
            counts[outcome] += 1
        if share.error is not None:
            errors.append(f"{share.error}{newest}")
        seconds = max(seconds, share.seconds)
    figures: dict[str, Any] = {
        # A suite of which nothing ran has shown nothing.
        "good": not failing and not errors and counts["passed"] > 0,
        **counts,
        "not_run": max(0, num_selected - sum(counts.values())),
        "seconds": round(seconds, 1),
    }
    if skipped_for:
        figures["skipped_for"] = sorted(skipped_for)
    if failing:
        figures["failing"] = failing
    if errors:
        figures["errors"] = list(dict.fromkeys(errors))
    return figures


def _show(suite: Suite, figures: dict[str, Any]) -> None:
    counts = ", ".join(
        f"{figures[name]} {name.replace('_', ' ')}"
        for name in ("passed", "failed", "skipped", "not_run")
        if figures[name] or name == "passed"
    )
    print(f"== {suite.about} ({suite.name}): {counts}, {figures['seconds']} s")
    for test, why in figures.get("failing", {}).items():
        print(f"FAILED {test}: {why}")
    for error in figures.get("errors", ()):
        print(f"error: {error}")
    print(flush=True)


if __name__ == "__main__":
    typer.run(main)
