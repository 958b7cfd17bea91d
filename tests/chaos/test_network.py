"""The network between the processes is slow, lossy, cut or silent; it heals; nothing is lost.

Workers or the router reach the scheduler through a proxy of the tests' own (see `proxy`), and in
one test from a network namespace whose link is taken down.
"""

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from protos.trust import TOKEN_VARIABLE
from tests.chaos.by_hand import ByHand, Way, laid_out
from tests.chaos.checker import check_ended, check_run
from tests.chaos.judge import Judge
from tests.chaos.namespaces import host
from tests.chaos.pauses import Figures, pauses
from tests.chaos.proxy import proxy
from tests.chaos.streams import History, Load, told
from tests.chaos.traffic import mixed
from tests.e2e.server import free_port

pytestmark = pytest.mark.chaos

NUM_STREAMS, MAX_TOKENS = 16, 32


async def in_peace(stack: ByHand) -> list[History]:
    """What the streams of this file are when nothing happens."""
    reference = await told(stack.url, mixed(NUM_STREAMS, MAX_TOKENS))
    for history in reference:
        check_ended(history)
    return reference


def again(reference: Sequence[History], stack: ByHand, salt: str) -> Load:
    """The same streams, begun once more."""
    return Load(stack.url, [history.asked.salted(salt) for history in reference])


@pytest.mark.slow
async def test_a_worker_is_cut_off_delayed_and_silent(
    model_dir: Path, judge: Judge, figures: Figures
) -> None:
    """One after the other, on one stack: what each leaves behind is the next one's beginning."""
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(model_dir, {"worker-0": Way(way.address)}, scheduler_port=port) as stack,
    ):
        reference = await in_peace(stack)

        way.now.delay_s, way.now.loss = 0.1, 0.05
        dialled = way.num_dialled
        load = again(reference, stack, "slow")
        await check_run(stack, await load.ended(), reference, judge)
        assert way.num_dialled == dialled, "a slow worker was given up"
        figures.add("a worker 200 ms away, 5 % lost", pauses(load.histories, 0))
        way.heal()

        load = again(reference, stack, "cut")
        await load.until(0.3, reference)
        at = time.monotonic()
        way.cut()
        histories = await load.ended()
        await stack.until_whole()
        assert way.num_dialled == dialled + 1
        await check_run(stack, histories, reference, judge)
        figures.add("a worker's connection cut", pauses(histories, at))

        load = again(reference, stack, "silent")
        await load.until(0.3, reference)
        at = time.monotonic()
        way.fall_silent()
        histories = await load.ended()
        way.heal()
        await stack.until_whole()
        assert stack.metric("scheduler", "quire:fenced_replicas_total") == 0, (
            "a step had to be late before anybody saw that the connection was dead"
        )
        await check_run(stack, histories, reference, judge)
        figures.add("a worker's connection silent", pauses(histories, at))


@pytest.mark.slow
async def test_a_machine_is_unplugged(
    model_dir: Path, judge: Judge, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker is in a network of its own; what is lost on the way is lost without a word."""
    monkeypatch.setenv(TOKEN_VARIABLE, secrets.token_hex(32))  # a scheduler off loopback asks
    port = free_port()
    with host(0) as first, host(1) as second:
        ways = {
            f"worker-{index}": Way(f"{where.gateway}:{port}", where.within)
            for index, where in enumerate((first, second))
        }
        async with laid_out(model_dir, ways, scheduler_port=port, listen="0.0.0.0") as stack:
            reference = await in_peace(stack)
            load = again(reference, stack, "unplugged")
            await load.until(0.3, reference)
            at = time.monotonic()
            first.unplug()
            histories = await load.ended()
            first.plug()
            await stack.until_whole()
            assert stack.metric("scheduler", "quire:fenced_replicas_total") == 0
            await check_run(stack, histories, reference, judge)
            figures.add("a worker's machine unplugged", pauses(histories, at))


@pytest.mark.slow
@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True)], ids=["up", "down"])
async def test_one_direction_is_silent(
    model_dir: Path, judge: Judge, figures: Figures, up: bool, down: bool
) -> None:
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(model_dir, {"worker-0": Way(way.address)}, scheduler_port=port) as stack,
    ):
        reference = await in_peace(stack)
        load = again(reference, stack, "silent")
        await load.until(0.3, reference)
        at = time.monotonic()
        way.fall_silent(up=up, down=down)
        histories = await load.ended()
        way.heal()
        await stack.until_whole()
        await check_run(stack, histories, reference, judge)
        said = "worker to scheduler" if up else "scheduler to worker"
        figures.add(f"silent from {said}", pauses(histories, at))


@pytest.mark.parametrize("how", ["cut", pytest.param("silent", marks=pytest.mark.slow)])
async def test_the_router_loses_its_way(
    model_dir: Path, judge: Judge, figures: Figures, how: str
) -> None:
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(model_dir, {"router": Way(way.address)}, scheduler_port=port) as stack,
    ):
        reference = await in_peace(stack)
        load = again(reference, stack, how)
        await load.until(0.3, reference)
        at = time.monotonic()
        if how == "cut":
            way.cut()
        else:
            way.fall_silent()
            await stack.until_idle()  # the scheduler drops what the lost router asked for
            way.heal()
        histories = await load.ended()
        await check_run(stack, histories, reference, judge)
        figures.add(f"the router's connection {how}", pauses(histories, at))
