"""What `make gpu-check` makes of its tests' outcomes, on tests that are written for it."""

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as benchmark
from bench.gpu import check
from bench.gpu.check import Share, Suite, run_share, summed_up
from bench.gpu.outcomes import share
from bench.gpu.packages import missing

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

MIXED = """
import os, time, warnings
import pytest

def test_good():
    warnings.warn("another version may warn of this")

@pytest.mark.parametrize("number", [1, 2])
def test_wrong(number):
    assert number == 3, "not three"

@pytest.mark.skip(reason="not today")
def test_skipped():
    raise RuntimeError

@pytest.fixture
def broken():
    raise RuntimeError("no device")

def test_not_set_up(broken):
    pass

def test_last():
    {last}

def test_after():
    pass
"""


def run(directory: Path, source: str, *, patience_s: float, num_shares: int = 1) -> dict[str, Any]:
    file = directory / "test_mixed.py"
    file.write_text(source)
    suite = Suite("mixed", "", (str(file), "--rootdir", str(directory)), (), num_shares)
    shares = [
        run_share(suite, number, CPU, directory, time.monotonic() + patience_s)
        for number in range(1, num_shares + 1)
    ]
    return summed_up(shares)


@pytest.mark.parametrize("num_shares", [1, 3])
def test_every_outcome_is_counted_whoever_ran_it(tmp_path: Path, num_shares: int) -> None:
    source = MIXED.format(last="pass")
    figures = run(tmp_path, source, patience_s=60, num_shares=num_shares)
    assert figures.pop("seconds") > 0
    assert figures == {
        "good": False,
        "passed": 3,
        "failed": 3,
        "skipped": 1,
        "not_run": 0,
        "skipped_for": ["Skipped: not today"],
        "failing": {
            "test_mixed.py::test_wrong[1]": "AssertionError: not three",
            "test_mixed.py::test_wrong[2]": "AssertionError: not three",
            "test_mixed.py::test_not_set_up": "RuntimeError: no device",
        },
    }


def test_what_was_known_stays_when_the_process_dies(tmp_path: Path) -> None:
    figures = run(tmp_path, MIXED.format(last="os._exit(9)"), patience_s=60)
    assert [figures[name] for name in ("passed", "failed", "skipped", "not_run")] == [1, 3, 1, 2]
    newest = "the newest test was test_mixed.py::test_last"
    assert figures["errors"] == [f"pytest ended with code 9; {newest}"]


def test_a_process_that_does_not_end_is_ended(tmp_path: Path) -> None:
    figures = run(tmp_path, MIXED.format(last="time.sleep(600)"), patience_s=1)
    [error] = figures["errors"]
    assert error.startswith("stopped after 1 s")
    assert not figures["good"]


def test_a_file_that_does_not_import_fails(tmp_path: Path) -> None:
    figures = run(tmp_path, "import no_such_module\n", patience_s=60)
    assert not figures["good"]
    assert "no_such_module" in str(figures["failing"])


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    suite = Suite("name", "", ("no_such_file",), ("torch", "no-such-package"))
    found = summed_up([run_share(suite, 1, CPU, tmp_path, time.monotonic() + 9)])
    assert found["errors"] == ["needs no-such-package, not installed here"]
    assert not found["good"]


def test_a_suite_of_which_nothing_ran_is_not_good() -> None:
    skipped = {"id": "a", "outcome": "skipped", "seconds": 0.0, "why": "no device"}
    assert not summed_up([Share([{"selected": 1}, skipped], 1.0, None, "")])["good"]
    assert not summed_up([Share([{"selected": 0}], 1.0, None, "")])["good"]


@pytest.mark.parametrize(("length", "count"), [(0, 3), (2, 3), (7, 3), (12, 4), (5, 1)])
def test_shares_are_all_and_nothing_twice(length: int, count: int) -> None:
    items = list(range(length))
    shares = [items[share(length, number, count)] for number in range(1, count + 1)]
    assert [item for each in shares for item in each] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_is_asked_for_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    named = {re.split(r"[^\w-]", line, maxsplit=1)[0] for group in groups for line in group}
    needs = [suite.needs for suite in check.SUITES]
    needs += [kind.needs for kind in benchmark.SUITES.values()]
    asked = {package for each in needs for package in each}
    assert asked - named == set()
    assert missing(asked) == []


def test_files_of_every_suite_exist() -> None:
    suites = [*check.SUITES, *(Suite("tiny", "", arguments) for arguments in check.TINY.values())]
    for suite in suites:
        paths = [a.removeprefix("--ignore=") for a in suite.arguments if "tests/" in a]
        assert paths
        assert all((ROOT / path).exists() for path in paths)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["bench.gpu", "bench.gpu.check"])
def test_without_a_gpu_one_line_says_so(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, "--save-dir", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: this machine has no CUDA device that torch can use\n"
    assert list(tmp_path.iterdir()) == []
