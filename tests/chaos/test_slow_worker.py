"""Workers whose cores others want, too: slow is not dead. Every limit is the default's."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.chaos.by_hand import laid_out
from tests.chaos.checker import check_ended, check_run
from tests.chaos.judge import Judge
from tests.chaos.pauses import Figures, pauses
from tests.chaos.stack import Stack
from tests.chaos.streams import Load, told
from tests.chaos.traffic import mixed

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

NUM_STREAMS, MAX_TOKENS = 16, 32
NUM_LOOPS = 4
NUM_LOOPS_EACH = 2


@contextlib.contextmanager
def busy(cores: Sequence[int]) -> Iterator[None]:
    """A loop that never rests on each of these cores; a core may be named more than once."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores]
    try:
        for loop, core in zip(loops, cores, strict=True):
            os.sched_setaffinity(loop.pid, {core})
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def crowded_core(stack: Stack) -> Iterator[None]:
    """All threads of one worker get one core, and share it with others."""
    core = min(os.sched_getaffinity(0))
    for thread in psutil.Process(stack.pid("worker-0")).threads():
        os.sched_setaffinity(thread.id, {core})
    with busy([core] * NUM_LOOPS):
        yield


@contextlib.contextmanager
def crowded_machine(_stack: Stack) -> Iterator[None]:
    """Every process shares its core with others."""
    with busy([*os.sched_getaffinity(0)] * NUM_LOOPS_EACH):
        yield


@pytest.mark.parametrize(
    ("crowded", "title"),
    [
        pytest.param(
            crowded_core, f"worker-0 shares its core with {NUM_LOOPS} busy loops", id="one core"
        ),
        pytest.param(
            crowded_machine, f"{NUM_LOOPS_EACH} busy loops on every core", id="the machine"
        ),
    ],
)
async def test_a_worker_on_a_crowded_core_is_not_given_up(
    model_dir: Path,
    judge: Judge,
    figures: Figures,
    crowded: Callable[[Stack], contextlib.AbstractContextManager[None]],
    title: str,
) -> None:
    async with laid_out(model_dir, {}) as stack:
        reference = await told(stack.url, mixed(NUM_STREAMS, MAX_TOKENS))
        for history in reference:
            check_ended(history)
        before = await stack.state()
        with crowded(stack):
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
        figures.add(title, measured)
