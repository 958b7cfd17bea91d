"""Hardware threads of one core count once, and a container's quota counts."""

import os
from pathlib import Path

import pytest

from worker import cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of two hardware threads each, no quota."""
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    return tmp_path


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [
        (range(8), None, 4),
        (range(8), "max 100000", 4),
        (range(8), "250000 100000", 2),
        (range(8), "50000 100000", 1),
        ((1, 5), None, 1),
        ((0, 1, 6), None, 3),
        ((40, 41), None, 2),
    ],
)
def test_usable_cores(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    affinity: tuple[int, ...],
    quota: str | None,
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity))
    if quota is not None:
        (machine / "cpu.max").write_text(quota)
    assert cores.usable_cores() == expected


def test_threads_spin_shortly_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "7")  # so that monkeypatch restores what is set below
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cores.size_thread_pools(3)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["GOMP_SPINCOUNT"]) == ("3", "7")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    cores.size_thread_pools(3)
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cores.size_thread_pools(3)
    assert "GOMP_SPINCOUNT" not in os.environ
