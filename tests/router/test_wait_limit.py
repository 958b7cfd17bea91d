"""The limit on waits: one that is too long ends, and only the wait under way counts."""

import asyncio
from collections.abc import Awaitable

import pytest

from router.wait_limit import WaitLimit


async def waits(pause_s: float, wait: Awaitable[object]) -> None:
    """Waits under a limit of 10 ms, after a pause that is none of its business."""
    async with WaitLimit(0.01) as limit:
        await asyncio.sleep(pause_s)
        with limit:
            await wait


async def raises() -> None:
    raise ValueError("other")


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
async def test_a_wait_that_is_too_long_ends(pause_s: float) -> None:
    with pytest.raises(TimeoutError):
        await waits(pause_s, asyncio.Event().wait())


async def test_what_is_no_wait_may_take_any_time() -> None:
    async with WaitLimit(0.01) as limit:
        with limit:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)


async def test_what_ends_the_block_otherwise_comes_out() -> None:
    with pytest.raises(ValueError, match="other"):
        await waits(0.0, raises())
    await asyncio.sleep(0.1)  # the limit has ended with its block, and does not cancel this
