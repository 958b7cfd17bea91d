"""A worker freezes where nobody supervises it: the deadline of its steps is all there is."""

import signal
import time
from pathlib import Path

import pytest

from protos.flags import STEP_TIMEOUT
from quire.hangs import Patience
from tests.chaos.by_hand import laid_out
from tests.chaos.checker import check_ended, check_exact, check_nothing_left
from tests.chaos.pauses import LONGEST, Figures, pauses
from tests.chaos.small import small_model, streams
from tests.chaos.streams import Load, told

pytestmark = pytest.mark.chaos

NOBODY_LOOKS = Patience(stopped_s=0, silent_s=0)


async def test_it_costs_seconds_and_no_token(tmp_path: Path, figures: Figures) -> None:
    """Every limit is the default's; when it thaws, it attaches again."""
    small = small_model(tmp_path / "small")
    async with laid_out(small, {}, patience=NOBODY_LOOKS) as stack:
        reference = await told(stack.url, streams(8, 800, "peace"))
        for history in reference:
            check_ended(history)
        load = Load(stack.url, streams(8, 800, "frozen"))
        await load.begun()
        at = time.monotonic()
        frozen = stack.signal("worker-0", signal.SIGSTOP)
        assert any(history.ended_at is None for history in load.histories), "it came too late"
        histories = await load.ended()
        state = await stack.state()
        assert len(state["replicas"]) == 1, "it came back by itself"
        assert state["replays"] > 0, "nothing ran on it"
        check_exact(histories, reference)
        measured = pauses(histories, at)
        figures.add("a worker is stopped for good, and nobody looks", measured)
        assert measured[LONGEST] < STEP_TIMEOUT.default / 2
        assert stack.signal("worker-0", signal.SIGCONT) == frozen
        await stack.until_whole()
        await check_nothing_left(stack)
