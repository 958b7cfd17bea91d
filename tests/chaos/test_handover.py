"""A scheduler that is told to end goes at once: nobody waits for what is in flight to end."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.chaos.amid import in_time
from tests.chaos.by_hand import laid_out
from tests.chaos.checker import check_ended, check_exact, check_nothing_left
from tests.chaos.small import small_model, streams
from tests.chaos.streams import History, Load, told

pytestmark = pytest.mark.chaos


async def test_who_comes_while_the_scheduler_is_restarted(tmp_path: Path) -> None:
    """They wait for the next one like those in flight, and none hears of it."""
    async with laid_out(small_model(tmp_path / "small"), {}, num_workers=1) as stack:
        reference = await told(stack.url, streams(8, 800, "peace"))
        for history in reference:
            check_ended(history)
        expected = (await told(stack.url, streams(1, 20, "peace")))[0]

        async def hand_over(salt: str) -> bool:
            load = Load(stack.url, streams(8, 800, salt))
            await load.begun()
            is_over = asyncio.Event()
            coming = asyncio.create_task(_come(stack.url, salt, is_over))
            told_to_end = stack.signal("scheduler", signal.SIGTERM)
            await stack.until_replaced("scheduler", told_to_end)
            went_at_once = not load.is_over
            histories = await load.ended()
            is_over.set()
            newcomers = await coming
            check_exact(histories, reference)
            check_exact(newcomers, [expected] * len(newcomers))
            await stack.until_whole(1)
            return went_at_once

        await in_time(hand_over, "it waited for them")
        await check_nothing_left(stack)


async def _come(url: str, salt: str, is_over: asyncio.Event) -> list[History]:
    """One after another, each a moment after the last."""
    asked: list[asyncio.Task[list[History]]] = []
    while not is_over.is_set():
        asked.append(asyncio.create_task(told(url, streams(1, 20, f"{salt}-{len(asked)}"))))
        await asyncio.sleep(0.1)
    return [history for histories in await asyncio.gather(*asked) for history in histories]
