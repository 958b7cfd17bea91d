"""What every test may rely on: one compute thread per process, and the small real model on disk."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ties import total_ties

# Several test processes share the machine, and OpenMP threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Triton reads this when it is imported first, which transformers does; so it is not left to the
# tests of kernels. Without a GPU those run in Triton's interpreter.
HAS_GPU = Path("/dev/nvidiactl").exists()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Some platforms have no Triton at all.
collect_ignore = [] if find_spec("triton") else ["kernels/gpu"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many answers of the end-to-end tests a tie decided."""
    reports = (report for outcome in terminalreporter.stats.values() for report in outcome)
    ties = total_ties(reports)
    if ties is not None:
        terminalreporter.write_line(f"answers that a tie between two tokens decided: {ties}")
