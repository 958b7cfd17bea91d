"""A second fault while the first is being mended: streams go on all the same."""

import signal
from pathlib import Path

import pytest

from tests.chaos.amid import in_time
from tests.chaos.by_hand import Way, laid_out
from tests.chaos.checker import check_exact, check_nothing_left
from tests.chaos.proxy import proxy
from tests.chaos.small import small_model, streams
from tests.chaos.streams import Load, told
from tests.ports import free_port

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

NUM_STREAMS, MAX_TOKENS = 16, 900


async def test_the_scheduler_dies_while_a_worker_is_being_replaced(tmp_path: Path) -> None:
    """What the dead worker computed is in the hands of a scheduler that dies with it."""
    async with laid_out(small_model(tmp_path / "small"), {}) as stack:
        reference = await told(stack.url, streams(NUM_STREAMS, MAX_TOKENS, "peace"))

        async def kill_both(salt: str) -> bool:
            load = Load(stack.url, streams(NUM_STREAMS, MAX_TOKENS, salt))
            await load.until(0.2, reference)
            worker = stack.signal("worker-0", signal.SIGKILL)
            await stack.until_lost(worker)
            scheduler = stack.signal("scheduler", signal.SIGKILL)
            is_replaced = stack.processes()["worker-0"].state == "ready"
            came_in_time = not load.is_over and not is_replaced
            check_exact(await load.ended(), reference)
            await stack.until_replaced("worker-0", worker)
            await stack.until_replaced("scheduler", scheduler)
            await stack.until_whole()
            return came_in_time

        await in_time(kill_both, "the streams were over, or the worker was there again")
        await check_nothing_left(stack)


async def test_a_worker_dies_while_it_dials_a_new_scheduler(tmp_path: Path) -> None:
    """The other order: the new scheduler may or may not have heard of it."""
    async with laid_out(small_model(tmp_path / "small"), {}) as stack:
        reference = await told(stack.url, streams(NUM_STREAMS, MAX_TOKENS, "peace"))

        async def kill_both(salt: str) -> bool:
            load = Load(stack.url, streams(NUM_STREAMS, MAX_TOKENS, salt))
            await load.until(0.2, reference)
            scheduler = stack.signal("scheduler", signal.SIGKILL)
            await stack.until_replaced("scheduler", scheduler)
            came_in_time = not load.is_over
            worker = stack.signal("worker-0", signal.SIGKILL)
            check_exact(await load.ended(), reference)
            await stack.until_replaced("worker-0", worker)
            await stack.until_whole()
            return came_in_time

        await in_time(kill_both, "the streams were over")
        await check_nothing_left(stack)


async def test_the_router_is_cut_off_while_the_scheduler_restarts(tmp_path: Path) -> None:
    """The new one serves for a while before it hears of what is in flight."""
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(
            small_model(tmp_path / "small"), {"router": Way(way.address)}, scheduler_port=port
        ) as stack,
    ):
        reference = await told(stack.url, streams(NUM_STREAMS, MAX_TOKENS, "peace"))
        load = Load(stack.url, streams(NUM_STREAMS, MAX_TOKENS, "both"))
        await load.until(0.2, reference)
        scheduler = stack.signal("scheduler", signal.SIGKILL)
        way.now.is_refusing = True
        way.cut()
        await stack.until_replaced("scheduler", scheduler)
        await stack.until_attached(2)
        await way.until_refused()
        assert (await stack.state())["running"] == 0
        way.heal()
        check_exact(await load.ended(), reference)
        await stack.until_whole()
        await check_nothing_left(stack)
