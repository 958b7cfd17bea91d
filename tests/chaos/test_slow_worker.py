"""A worker whose core others want, too: slow is not dead."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.by_hand import laid_out
from tests.chaos.checker import check_ended, check_run
from tests.chaos.judge import Judge
from tests.chaos.pauses import Figures, pauses
from tests.chaos.streams import Load, told
from tests.chaos.traffic import mixed

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

NUM_STREAMS, MAX_TOKENS = 16, 32
NUM_LOOPS = 4


@contextlib.contextmanager
def crowded(pid: int) -> Iterator[None]:
    """All of the process's threads get one core, and share it with loops that never rest."""
    core = min(os.sched_getaffinity(0))
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {core})
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NUM_LOOPS)]
    try:
        for loop in loops:
            os.sched_setaffinity(loop.pid, {core})
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


async def test_a_worker_on_a_crowded_core_is_not_given_up(
    model_dir: Path, judge: Judge, figures: Figures
) -> None:
    async with laid_out(model_dir, {}) as stack:
        reference = await told(stack.url, mixed(NUM_STREAMS, MAX_TOKENS))
        for history in reference:
            check_ended(history)
        before = await stack.state()
        with crowded(stack.pid("worker-0")):
            asked = [history.asked.salted("crowded") for history in reference]
            load = Load(stack.url, asked)
            histories = await load.ended()
        after = await stack.state()
        for name in ("epoch", "replica"):
            was = [replica[name] for replica in before["replicas"]]
            assert [replica[name] for replica in after["replicas"]] == was
        assert after["replays"] == before["replays"]
        await check_run(stack, histories, reference, judge)
        steps = {
            replica["replica"]: replica["steps"] - earlier["steps"]
            for replica, earlier in zip(after["replicas"], before["replicas"], strict=True)
        }
        measured = {"steps": steps, **pauses(histories, 0)}
        figures.add(f"worker-0 shares its core with {NUM_LOOPS} busy loops", measured)
