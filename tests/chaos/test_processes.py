"""Any one process dies, hangs or is restarted under load: every stream ends as if nothing had been.

Real processes over real gRPC, the real model, two replicas on this machine. The short form is in
the default tier; `make chaos` runs the full one and prints the pauses.
"""

import asyncio
import os
import signal
import time

import pytest

from bench.recording import Target
from tests.chaos.checker import check_run, check_survivors
from tests.chaos.conftest import at_scale
from tests.chaos.judge import Judge
from tests.chaos.pauses import LONGEST, Figures, pauses
from tests.chaos.scene import STEP_TIMEOUT_S, Scene
from tests.chaos.stack import PATIENCE_S, Stack
from tests.chaos.streams import History, Load, told

pytestmark = pytest.mark.chaos

MOMENT_S = 2.0
FEW = 15
"""One of so many comes while a process is being restarted."""
WORKER_TARGET_S, SCHEDULER_TARGET_S = 1.0, 3.0


@at_scale("short")
async def test_a_second_run_in_peace_is_the_same(scene: Scene, judge: Judge) -> None:
    histories = await told(scene.stack.url, scene.asked())
    await check_run(scene.stack, histories, scene.reference, judge)


@at_scale("short")
@pytest.mark.parametrize(
    ("name", "its_transport"),
    [
        pytest.param("worker-0", False, id="worker"),
        pytest.param("worker-1", True, id="transport", marks=pytest.mark.slow),
    ],
)
async def test_a_worker_is_killed(
    scene: Scene, judge: Judge, figures: Figures, name: str, its_transport: bool
) -> None:
    """The process that has the device, or the one that has the connection: neither outlives the
    other."""
    stack = scene.stack
    await stack.until_whole()
    before = await stack.state()
    killed, noticed_s = 0, 0.0
    lost: dict[str, float] = {}

    async def kill() -> None:
        nonlocal killed, noticed_s, lost
        killed = stack.pid(name)
        lost = await scene.computed_again(killed)
        noticed_s = await _kill_one_that_runs(
            stack, stack.transport_of(name) if its_transport else killed, before["replays"]
        )

    histories, at = await scene.disturbed(kill)
    await stack.until_replaced(name, killed)
    await stack.until_whole()
    await check_run(stack, histories, scene.expected, judge)
    who = f"{name}'s transport" if its_transport else name
    _tell_of_a_spare(figures, f"{who} killed", noticed_s, lost, pauses(histories, at))


@at_scale("full")
async def test_one_worker_is_killed_and_then_the_other(
    scene: Scene, judge: Judge, figures: Figures
) -> None:
    """While the same streams run: what the second took over is lost once more with it."""
    stack = scene.stack
    await stack.until_whole()
    load = Load(stack.url, scene.asked())
    await load.until(0.3, scene.reference)
    before = await stack.state()
    killed = {"worker-0": stack.pid("worker-0")}
    lost = await scene.computed_again(killed["worker-0"])
    first_at = time.monotonic()
    noticed_s = await _kill_one_that_runs(stack, killed["worker-0"], before["replays"])
    await load.until(0.6, scene.reference)
    lost_then = await scene.computed_again(stack.pid("worker-1"))
    second_at = time.monotonic()
    killed["worker-1"] = stack.signal("worker-1", signal.SIGKILL)
    histories = await load.ended()
    for name, pid in killed.items():
        await stack.until_replaced(name, pid)
    await stack.until_whole()
    await check_run(stack, histories, scene.reference, judge)
    by_then = pauses(histories, first_at, second_at)
    _tell_of_a_spare(figures, "worker-0 killed", noticed_s, lost, by_then)
    figures.add("and then worker-1 beside it", lost_then | pauses(histories, second_at))


async def _kill_one_that_runs(stack: Stack, pid: int, num_replays: int) -> float:
    """Seconds until what it computed was given to another."""
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while (await stack.state())["replays"] == num_replays:
        assert time.monotonic() - at < PATIENCE_S, "nothing ran there"
    return time.monotonic() - at


def _tell_of_a_spare(
    figures: Figures,
    what: str,
    noticed_s: float,
    lost: dict[str, float],
    waited: dict[str, float],
) -> None:
    """Most of the pause of this model on a CPU is what has to be computed again; the target is
    held where that is nothing, in `test_pauses`."""
    longest = waited[LONGEST]
    measured = {"sequences given to the other after, s": noticed_s, **lost, **waited}
    measured["beyond computing it, s"] = max(0.0, longest - lost["which takes, s"])
    target = Target(f"{what}, s", longest, WORKER_TARGET_S)
    figures.add(f"{what}, a spare replica", measured, target, judging=False)


async def test_the_scheduler_is_killed(scene: Scene, judge: Judge, figures: Figures) -> None:
    stack = scene.stack
    await stack.until_whole()
    workers = {name: stack.pid(name) for name in ("worker-0", "worker-1")}
    killed = 0

    async def kill() -> None:
        nonlocal killed
        killed = stack.signal("scheduler", signal.SIGKILL)

    histories, at = await scene.disturbed(kill)
    await stack.until_replaced("scheduler", killed)
    await stack.until_whole()
    await check_run(stack, histories, scene.expected, judge)
    assert {name: stack.pid(name) for name in workers} == workers, "a worker lost its weights"
    state = await stack.state()
    measured = pauses(histories, at)
    computed = state["prefix_query_tokens"] - state["prefix_hit_tokens"]
    measured["tokens not found in blocks, newcomers' too"] = computed
    target = Target("scheduler killed, s", measured[LONGEST], SCHEDULER_TARGET_S)
    figures.add("scheduler killed", measured, target, judging=False)


@at_scale("full")
async def test_a_worker_is_stopped(scene: Scene, judge: Judge, figures: Figures) -> None:
    stack = scene.stack
    await stack.until_whole()
    fenced = stack.metric("scheduler", "quire:fenced_replicas_total")

    async def stop() -> None:
        stack.signal("worker-0", signal.SIGSTOP)

    histories, at = await scene.disturbed(stop)
    assert stack.metric("scheduler", "quire:fenced_replicas_total") == fenced + 1
    stack.signal("worker-0", signal.SIGCONT)  # whatever it still says is of an epoch that is over
    await stack.until_whole()
    await check_run(stack, histories, scene.expected, judge)
    figures.add(f"worker-0 stopped, steps may take {STEP_TIMEOUT_S:g} s", pauses(histories, at))


@pytest.mark.slow
@at_scale("short")
async def test_a_worker_is_stopped_for_a_moment(
    scene: Scene, judge: Judge, figures: Figures
) -> None:
    """As a collector's pause or a busy machine would."""
    stack = scene.stack
    await stack.until_whole()

    async def stop() -> None:
        pid = stack.signal("worker-0", signal.SIGSTOP)
        await asyncio.sleep(MOMENT_S)
        os.kill(pid, signal.SIGCONT)

    histories, at = await scene.disturbed(stop)
    await stack.until_whole()
    await check_run(stack, histories, scene.expected, judge)
    figures.add(f"worker-0 stopped for {MOMENT_S:g} s", pauses(histories, at))


@at_scale("short")
async def test_a_router_is_killed(scene: Scene, judge: Judge) -> None:
    """Its own clients see a broken connection, after what they should have had until then."""
    stack = scene.stack
    await stack.until_whole()
    load = Load(stack.url, scene.asked())
    await load.until(0.35, scene.reference)
    killed = stack.signal("router-0", signal.SIGKILL)
    histories = await load.ended()
    await stack.until_replaced("router-0", killed)
    await stack.until_whole()
    num_broken = await check_survivors(stack, histories, scene.reference, judge)
    assert 0 < num_broken < len(histories), "all on one side"


@at_scale("full")
@pytest.mark.timeout(1800)
async def test_every_process_is_restarted_in_turn(
    scene: Scene, judge: Judge, figures: Figures
) -> None:
    """Workers and scheduler while the same streams run, and some come just then; each router, which
    leaves when its own have ended, in the middle of others."""
    stack = scene.stack
    await stack.until_whole()
    at = time.monotonic()
    load: Load | None = None
    loads: list[Load] = []
    expected: list[History] = []
    for name in ("worker-0", "worker-1", "scheduler"):
        if load is None or load.is_over:
            load = Load(stack.url, scene.asked())
            loads.append(load)
            expected += scene.reference
            await load.until(0.1, scene.reference)
        told_to_end = stack.signal(name, signal.SIGTERM)
        loads.append(Load(stack.url, scene.asked()[::FEW]))
        expected += scene.reference[::FEW]
        await stack.until_replaced(name, told_to_end)
        await stack.until_attached(2)
    histories = [history for each in loads for history in await each.ended()]
    await stack.until_whole()
    await check_run(stack, histories, expected, judge)
    figures.add("both workers and the scheduler restarted", pauses(histories, at))
    few = scene.quarter()
    for name in ("router-0", "router-1"):
        await stack.until_routers_are_ready()
        leaving = 0

        async def tell(name: str = name) -> None:
            nonlocal leaving
            leaving = stack.signal(name, signal.SIGTERM)

        histories, at = await few.disturbed(tell)
        await stack.until_replaced(name, leaving)
        await stack.until_whole()
        await check_run(stack, histories, few.expected, judge)
        figures.add(f"{name} told to end and started again", pauses(histories, at))
