"""How long clients wait when a process is lost, where computing again takes next to no time.

With a model of any size a pause is that computation, on whatever is left to do it; here it is what
Quire itself needs: noticing, choosing another, and starting what has died.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from bench.recording import Target
from tests.chaos.by_hand import MODEL
from tests.chaos.checker import check_ended, check_exact, check_nothing_left
from tests.chaos.pauses import LONGEST, Figures, pauses
from tests.chaos.small import small_model, streams
from tests.chaos.stack import Served, running
from tests.chaos.streams import History, Load, told
from tests.chaos.test_processes import SCHEDULER_TARGET_S, WORKER_TARGET_S

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

NUM_STREAMS, MAX_TOKENS = 32, 900


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = small_model(tmp_path_factory.mktemp("models") / "small")
    flags = ("--served-model-name", MODEL, "--replicas", "2", "--router-processes", "2")
    with running(model, tmp_path_factory.mktemp("run"), *flags) as served:
        yield served


@pytest.fixture
async def reference(stack: Served) -> list[History]:
    """The streams, when nothing happens."""
    await stack.until_whole()
    histories = await told(stack.url, streams(NUM_STREAMS, MAX_TOKENS, "peace"))
    for history in histories:
        check_ended(history)
    return histories


@pytest.mark.parametrize(
    ("victim", "limit_s"),
    [
        ("worker-0", WORKER_TARGET_S),
        ("worker-1's transport", WORKER_TARGET_S),
        ("scheduler", SCHEDULER_TARGET_S),
    ],
)
async def test_a_process_is_killed(
    stack: Served, reference: list[History], figures: Figures, victim: str, limit_s: float
) -> None:
    name, _, its_transport = victim.partition("'s ")
    load = Load(stack.url, streams(NUM_STREAMS, MAX_TOKENS, name))
    await load.until(0.3, reference)
    pid = stack.pid(name)
    killed = stack.transport_of(name) if its_transport else pid
    at = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    check_exact(await load.ended(), reference)
    await stack.until_replaced(name, pid)
    await stack.until_whole()
    await check_nothing_left(stack)
    measured = pauses(load.histories, at)
    target = Target(
        f"{victim} killed, next to nothing to compute again, s", measured[LONGEST], limit_s
    )
    figures.add(f"{victim} killed, a model of next to no size", measured, target)
