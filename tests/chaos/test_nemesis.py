"""Faults drawn by lot, several in one run, at any moment: what no test of one fault thinks of.

Jepsen's arrangement: a load, a nemesis, and the history checker after each round.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.chaos.checker import check_survivors
from tests.chaos.judge import Judge
from tests.chaos.pauses import Figures, pauses
from tests.chaos.scene import Scale, Scene, set_up
from tests.chaos.stack import Stack
from tests.chaos.streams import Load

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3600)]

SCALE = Scale(num_streams=32, max_tokens=100)
ROUNDS, SEED = 5, int(os.environ.get("QUIRE_CHAOS_SEED", "397"))
"""With this seed nearly every process meets nearly every means in so few rounds."""
VICTIMS = (
    *("worker-0", "worker-1", "scheduler", "router-0", "router-1"),
    *("worker-0's transport", "worker-1's transport"),
)
MEANS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
MAX_STOP_S = 12.0


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, figures: Figures) -> Iterator[Scene]:
    """Smaller than that of one fault at a time: there are many rounds."""
    with set_up(SCALE, tmp_path_factory.mktemp("run"), figures) as made:
        yield made


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_faults_by_lot(scene: Scene, judge: Judge, figures: Figures, number: int) -> None:
    dice = random.Random(SEED * 1000 + number)
    stack = scene.stack
    await stack.until_whole()
    load = Load(stack.url, scene.asked())
    at = time.monotonic()
    told, resuming = [], []
    ending: set[int] = set()
    share, num_routers_killed = 0.0, 0
    for _ in range(dice.randint(1, 3)):
        share = dice.uniform(share, 0.8)
        await load.until(share, scene.reference)
        name, how = dice.choice(VICTIMS), dice.choice(MEANS)
        pid = _process(stack, name)
        if pid is None or (pid in ending and how is signal.SIGTERM):
            continue  # on its way back, or out: told again, it would hang up on clients
        os.kill(pid, how)
        ending.add(pid)
        num_routers_killed += name.startswith("router") and how is signal.SIGKILL
        told.append(f"{how.name} {name} at {share:.0%}")
        if how is signal.SIGSTOP:
            resuming.append(asyncio.create_task(_resume(pid, dice.uniform(0.1, MAX_STOP_S))))
    histories = await load.ended()
    await asyncio.gather(*resuming)
    await stack.until_whole()
    num_broken = await check_survivors(stack, histories, scene.reference, judge)
    assert not num_broken or num_routers_killed, f"{num_broken} connections broke"
    figures.add(f"round {number}: {', '.join(told)}", pauses(histories, at))


def _process(stack: Stack, name: str) -> int | None:
    """Its id, if it runs."""
    name, _, its_transport = name.partition("'s ")
    if stack.processes()[name].pid is None:
        return None
    if not its_transport:
        return stack.pid(name)
    try:
        return stack.transport_of(name)
    except (ValueError, psutil.NoSuchProcess):
        return None  # it has none yet, or no longer


async def _resume(pid: int, after_s: float) -> None:
    await asyncio.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
        os.kill(pid, signal.SIGCONT)
