"""A process hangs and goes on hanging: the supervisor puts another in its place, streams go on."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from quire.hangs import ASK_EVERY_S, Patience
from tests.chaos.by_hand import laid_out
from tests.chaos.checker import check_ended, check_exact, check_nothing_left
from tests.chaos.small import small_model, streams
from tests.chaos.streams import Load, told

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param((("scheduler", False), ("worker-0", False)), id="scheduler, then worker"),
        pytest.param((("worker-0", True),), id="transport", marks=pytest.mark.slow),
    ],
)
async def test_what_is_stopped_is_replaced(
    tmp_path: Path, victims: tuple[tuple[str, bool], ...]
) -> None:
    """The scheduler, the only worker, or that one's transport; each in the middle of streams."""
    async with laid_out(small_model(tmp_path / "small"), {}, num_workers=1) as stack:
        reference = await told(stack.url, streams(8, 800, "peace"))
        for history in reference:
            check_ended(history)
        for name, its_transport in victims:
            load = Load(stack.url, streams(8, 800, f"{name}-{its_transport}"))
            await load.begun()
            pid = stack.pid(name)
            stopped = stack.transport_of(name) if its_transport else pid
            os.kill(stopped, signal.SIGSTOP)
            assert any(history.ended_at is None for history in load.histories), "it came too late"
            check_exact(await load.ended(), reference)
            await stack.until_replaced(name, pid)
            why = f"warning process {stopped} has been stopped for 4 s: killed"
            assert [line for line in stack.log if line.startswith(f"{name}: ") and why in line]
            await stack.until_whole(1)
        await check_nothing_left(stack)


@pytest.mark.slow
async def test_a_router_that_falls_silent_is_replaced(tmp_path: Path) -> None:
    """It is stopped, and nobody looks for that here."""
    patience = Patience(stopped_s=0, silent_s=3)
    small = small_model(tmp_path / "small")
    async with laid_out(small, {}, num_workers=1, patience=patience) as stack:
        await asyncio.sleep(2 * ASK_EVERY_S)  # it is asked, and answers
        pid = stack.signal("router", signal.SIGSTOP)
        await stack.until_replaced("router", pid)
        why = "router warning it has not answered its health check for 3 s: killed"
        assert [line for line in stack.log if why in line]
        await stack.until_whole(1)
        [history] = await told(stack.url, streams(1, 800, "after"))
        check_ended(history)
        await check_nothing_left(stack)
