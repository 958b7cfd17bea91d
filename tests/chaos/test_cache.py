"""A new scheduler finds the prefixes that its predecessor left in the workers."""

import signal
from collections.abc import Iterator

import pytest

from bench.recording import Target
from tests.chaos.checker import check_nothing_left, check_run
from tests.chaos.judge import Judge
from tests.chaos.pauses import Figures
from tests.chaos.stack import Served, running
from tests.chaos.streams import told
from tests.chaos.test_clients import stories

pytestmark = pytest.mark.chaos

NUM_REQUESTS = 10
LEAST_RATE = 0.01


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running("smollm2", tmp_path_factory.mktemp("run"), "--replicas", "2") as stack:
        yield stack


async def test_prefixes_outlive_the_scheduler(
    stack: Served, judge: Judge, figures: Figures
) -> None:
    """No prompt begins like another: what is found was computed before the scheduler died."""
    asked = stories(NUM_REQUESTS, 8, "cache")
    for number, one in enumerate(asked):
        one.body["prompt"] = f"{number} " * 150
    before = await told(stack.url, asked)
    killed = stack.signal("scheduler", signal.SIGKILL)
    await stack.until_replaced("scheduler", killed)
    await stack.until_whole()
    assert (await stack.state())["prefix_hit_tokens"] == 0
    after = await told(stack.url, asked)
    await check_run(stack, after, before, judge)
    state = await stack.state()
    rate = state["prefix_hit_tokens"] / state["prefix_query_tokens"]
    target = Target("prefix hit rate with a new scheduler", rate, LEAST_RATE, at_least=True)
    figures.add("prefix cache after a scheduler was killed", {"hit rate": rate}, target)
    assert rate > 0
    await check_nothing_left(stack)
