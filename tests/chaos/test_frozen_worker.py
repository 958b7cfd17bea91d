"""A worker freezes where nobody supervises it: the deadline of its steps is all there is."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from bench.recording import Target
from quire.hangs import Patience
from tests.chaos.amid import in_time
from tests.chaos.by_hand import laid_out
from tests.chaos.checker import check_ended, check_exact, check_nothing_left
from tests.chaos.pauses import LONGEST, Figures, pauses
from tests.chaos.small import small_model, streams
from tests.chaos.streams import Load, told

pytestmark = pytest.mark.chaos

NOBODY_LOOKS = Patience(stopped_s=0, silent_s=0)
TARGET_S = 8.0
"""Far less than `--step-timeout`, which holds only until steps have been measured."""
LAST_WORDS_S = 0.2
"""In which all has been read that a worker said before it was stopped."""


@pytest.mark.slow
async def test_it_costs_seconds_and_no_token(tmp_path: Path, figures: Figures) -> None:
    """Every limit is the default's; when it thaws, it attaches again."""
    small = small_model(tmp_path / "small")
    async with laid_out(small, {}, patience=NOBODY_LOOKS) as stack:
        reference = await told(stack.url, streams(8, 800, "peace"))
        for history in reference:
            check_ended(history)

        async def freeze(salt: str) -> bool:
            load = Load(stack.url, streams(8, 800, salt))
            await load.begun()
            at = time.monotonic()
            frozen = stack.signal("worker-0", signal.SIGSTOP)
            await asyncio.sleep(LAST_WORDS_S)
            came_in_time = await stack.num_running(frozen) > 0
            if came_in_time:
                check_exact(await load.ended(), reference)
                state = await stack.state()
                assert len(state["replicas"]) == 1, "it came back by itself"
                assert state["replays"] > 0, "nothing ran on it"
                measured = pauses(load.histories, at)
                target = Target("worker frozen, nobody looks, s", measured[LONGEST], TARGET_S)
                figures.add("a worker is stopped for good, and nobody looks", measured, target)
            assert stack.signal("worker-0", signal.SIGCONT) == frozen
            check_exact(await load.ended(), reference)
            await stack.until_whole()
            return came_in_time

        await in_time(freeze, "nothing ran on it any more")
        await check_nothing_left(stack)
