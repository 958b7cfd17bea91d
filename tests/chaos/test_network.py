"""The network between the processes is slow, lossy, cut or silent; it heals; nothing is lost.

Workers or the router reach the scheduler through a proxy of the tests' own (see `proxy`), and in
one test from network namespaces, over wires of the tests' own (see `wire`).
"""

import asyncio
import os
import re
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from protos.trust import TOKEN_VARIABLE
from quire.hangs import Patience
from tests.chaos import forgetful_worker
from tests.chaos.amid import in_time
from tests.chaos.by_hand import ByHand, Way, laid_out
from tests.chaos.checker import check_ended, check_exact, check_nothing_left, check_run
from tests.chaos.judge import Judge
from tests.chaos.namespaces import distant_host
from tests.chaos.pauses import Figures, pauses
from tests.chaos.proxy import proxy
from tests.chaos.small import small_model, streams
from tests.chaos.stack import PATIENCE_S
from tests.chaos.streams import History, Load, told
from tests.chaos.traffic import mixed
from tests.ports import free_port

pytestmark = pytest.mark.chaos

NUM_STREAMS, MAX_TOKENS = 16, 32
DELAY_S, LOSS = 0.2, 0.05
"""One way, and of the packets in each direction."""


async def in_peace(stack: ByHand) -> list[History]:
    """What the streams of this file are when nothing happens."""
    reference = await told(stack.url, mixed(NUM_STREAMS, MAX_TOKENS))
    for history in reference:
        check_ended(history)
    return reference


def again(reference: Sequence[History], stack: ByHand, salt: str) -> Load:
    """The same streams, begun once more."""
    return Load(stack.url, [history.asked.salted(salt) for history in reference])


async def epochs_of(stack: ByHand) -> dict[str, int]:
    """Of the replicas that are attached."""
    return {replica["replica"]: replica["epoch"] for replica in (await stack.state())["replicas"]}


@pytest.mark.slow
async def test_workers_on_machines_far_away(
    model_dir: Path, judge: Judge, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is in a network of its own, at the end of a wire on which packets are late and lost."""
    monkeypatch.setenv(TOKEN_VARIABLE, secrets.token_hex(32))  # a scheduler off loopback asks
    port = free_port()
    with distant_host(0) as (first, its_wire), distant_host(1) as (second, other_wire):
        wires = (its_wire, other_wire)
        ways = {
            f"worker-{index}": Way(f"{where.gateway}:{port}", where.within)
            for index, where in enumerate((first, second))
        }
        async with laid_out(model_dir, ways, scheduler_port=port, listen="0.0.0.0") as stack:
            reference = await in_peace(stack)
            epochs = await epochs_of(stack)

            for wire in wires:
                wire.delay_s, wire.loss = DELAY_S, LOSS
            load = again(reference, stack, "far")
            histories = await load.ended()
            assert await epochs_of(stack) == epochs, "a slow worker was given up"
            assert all(wire.num_lost for wire in wires)
            await check_run(stack, histories, reference, judge)
            said = f"workers {DELAY_S * 1000:g} ms away each way, {LOSS:.0%} of packets lost"
            figures.add(said, pauses(histories, 0))

            load = again(reference, stack, "cut")
            await load.until(0.3, reference)
            at = time.monotonic()
            its_wire.is_cut = True
            histories = await load.ended()
            for wire in wires:
                wire.heal()
            await stack.until_whole()
            after = await epochs_of(stack)
            assert after["replica-0"] > epochs["replica-0"]
            assert after["replica-1"] == epochs["replica-1"]
            await check_run(stack, histories, reference, judge)
            by_deadline = stack.metric("scheduler", "quire:fenced_replicas_total")
            measured = pauses(histories, at) | {"seen by a late step first, replicas": by_deadline}
            figures.add("the same, and then one is unplugged", measured)


@pytest.mark.slow
async def test_a_worker_is_far_away_by_proxy_and_then_cut_off(
    model_dir: Path, judge: Judge, figures: Figures
) -> None:
    """Where there can be no namespaces, and with a connection that is reset."""
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(model_dir, {"worker-0": Way(way.address)}, scheduler_port=port) as stack,
    ):
        reference = await in_peace(stack)

        way.now.delay_s, way.now.loss = DELAY_S, LOSS
        dialled = way.num_dialled
        load = again(reference, stack, "slow")
        await check_run(stack, await load.ended(), reference, judge)
        assert way.num_dialled == dialled, "a slow worker was given up"
        figures.add("a worker's connection slow", pauses(load.histories, 0))
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


@pytest.mark.slow
async def test_one_direction_is_silent(model_dir: Path, judge: Judge, figures: Figures) -> None:
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(model_dir, {"worker-0": Way(way.address)}, scheduler_port=port) as stack,
    ):
        reference = await in_peace(stack)
        for said, up in (("worker to scheduler", True), ("scheduler to worker", False)):
            load = again(reference, stack, said.replace(" ", "-"))
            await load.until(0.3, reference)
            at = time.monotonic()
            way.fall_silent(up=up, down=not up)
            histories = await load.ended()
            way.heal()
            await stack.until_whole()
            assert stack.metric("scheduler", "quire:fenced_replicas_total") == 0
            await check_run(stack, histories, reference, judge)
            figures.add(f"silent from {said}", pauses(histories, at))


@pytest.mark.slow
async def test_plans_for_one_worker_stay_on_the_way(tmp_path: Path) -> None:
    """Its stream is open and what it says arrives: a plan that is not answered in time is late all
    the same (on a busy machine the pings that are not may be noticed first), and the other worker
    goes on."""
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(
            small_model(tmp_path / "small"),
            {"worker-0": Way(way.address)},
            scheduler_port=port,
            scheduler_flags=("--step-timeout", "3"),
        ) as stack,
    ):
        reference = await told(stack.url, streams(4, 800, "peace"))
        load = Load(stack.url, streams(4, 800, "stalled"))
        await load.begun()
        way.fall_silent(up=False)
        assert not load.is_over, "it came too late"
        check_exact(await load.ended(), reference)
        why = re.compile(
            r"replica 'replica-0' detached: (step \d+ .* missed its deadline|lost the stream)"
        )
        assert any(map(why.search, stack.log))
        way.heal()
        await stack.until_whole()
        await check_nothing_left(stack)


async def test_results_of_a_void_epoch_are_counted_and_ignored(tmp_path: Path) -> None:
    """A worker is in the middle of a step when its connection is cut; its transport, which should
    drop what comes of that, gives it to the next stream."""
    port = free_port()
    async with (
        proxy(f"127.0.0.1:{port}") as way,
        laid_out(
            small_model(tmp_path / "small"),
            {"worker-0": Way(way.address, module=forgetful_worker.ME)},
            scheduler_port=port,
            num_workers=1,
            patience=Patience(stopped_s=0),
        ) as stack,
    ):
        reference = await told(stack.url, streams(4, 800, "peace"))

        async def cut_within_a_step(salt: str) -> bool:
            before = await epochs_of(stack)
            load = Load(stack.url, streams(4, 800, salt))
            await load.begun()
            pid = stack.signal("worker-0", signal.SIGSTOP)
            assert not load.is_over, "it came too late"
            way.cut()
            async with asyncio.timeout(PATIENCE_S):
                while await epochs_of(stack) in ({}, before):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGCONT)
            check_exact(await load.ended(), reference)
            return stack.metric("scheduler", "quire:stale_results_total") > 0

        await in_time(cut_within_a_step, "no step was being computed")
        await check_nothing_left(stack)


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
