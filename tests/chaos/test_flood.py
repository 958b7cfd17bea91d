"""More is asked than can be done: who is refused hears it at once, and who asks little hardly waits
for who asks much."""

import asyncio
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from bench.flood import OUTPUT_WEIGHT, jain
from bench.recording import Target
from tests.chaos.by_hand import MODEL
from tests.chaos.checker import check_ended, check_exact, check_nothing_left
from tests.chaos.pauses import Figures
from tests.chaos.small import small_model, streams
from tests.chaos.stack import PATIENCE_S, Served, running
from tests.chaos.streams import History, Load, told
from tests.chaos.traffic import Asked

pytestmark = pytest.mark.chaos

NUM_SLOTS, NUM_QUEUED = 8, 24
TIMES_TOO_MUCH = 10
AT_ONCE = 8
REFUSAL_TARGET_S = 0.1

STEP_TOKENS = 128
"""Whoever comes waits for the steps that are in flight: on one core these are to be short."""
FLOOD, ITS_PROMPT, ITS_OUTPUT = 200, 64, 32
NUM_BESIDE = 6
TTFT_TARGET, JAIN_TARGET = 3.0, 0.95
SHAPES = {"long prompts": (160, 4), "long outputs": (8, 80), "small": (16, 8)}
"""Tokens of the prompt and of the output, by tenant."""
SHARED_COST = 4000.0


async def test_ten_times_what_fits(tmp_path: Path, figures: Figures) -> None:
    """What was accepted is not refused for what comes later."""
    flags = ("--max-num-seqs", str(NUM_SLOTS), "--max-queued", str(NUM_QUEUED))
    small = small_model(tmp_path / "small")
    with running(small, tmp_path / "run", "--served-model-name", MODEL, *flags) as stack:
        fitting = NUM_SLOTS + NUM_QUEUED
        load = Load(stack.url, streams(NUM_SLOTS, 400, "first"))
        await load.begun()
        queue = Load(stack.url, streams(NUM_QUEUED, 400, "queue"))
        await stack.until_queued(NUM_QUEUED)
        stack.signal("worker-0", signal.SIGSTOP)  # nobody leaves a place to those who come
        seconds = await _refused(stack, streams((TIMES_TOO_MUCH - 1) * fitting, 4, "late"))
        stack.signal("worker-0", signal.SIGCONT)
        for history in [*await load.ended(), *await queue.ended()]:
            check_ended(history)
        measured = {"refused": len(seconds), "median, s": statistics.median(seconds)}
        target = Target("slowest refusal, s", max(seconds), REFUSAL_TARGET_S)
        figures.add(f"{TIMES_TOO_MUCH} times the requests that fit", measured, target)
        await check_nothing_left(stack)


@pytest.mark.slow
async def test_more_than_the_kv_blocks_hold(tmp_path: Path) -> None:
    """All begin, and most are preempted again and again; nobody sees it in what it is sent."""
    flags = ("--num-blocks", "96", "--max-num-seqs", str(NUM_SLOTS))  # of 16 tokens
    small = small_model(tmp_path / "small")
    with running(small, tmp_path / "run", "--served-model-name", MODEL, *flags) as stack:
        asked = streams(NUM_SLOTS, 600, "alone")
        reference = [history for one in asked for history in await told(stack.url, [one])]
        assert (await stack.state())["preemptions"] == 0
        together = await told(stack.url, streams(NUM_SLOTS, 600, "together"))
        assert (await stack.state())["preemptions"] > 0
        check_exact(together, reference)
        await check_nothing_left(stack)


async def _refused(stack: Served, asked: list[Asked]) -> list[float]:
    """How long each took: all are."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(stack.url) as client:

        async def one(body: dict[str, object]) -> float:
            async with gate:
                began_at = time.monotonic()
                async with client.post("/v1/completions", json=body) as response:
                    assert response.status == 429
                    assert int(response.headers["retry-after"]) >= 1
                    return time.monotonic() - began_at

        return await asyncio.gather(*(one(each.body) for each in asked))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ("--max-num-seqs", str(NUM_SLOTS), "--max-num-batched-tokens", str(STEP_TOKENS))
    with running("smollm2", tmp_path_factory.mktemp("run"), *flags) as stack:
        yield stack


def of_tenant(
    tenant: str, count: int, num_prompt_tokens: int, max_tokens: int, *, first: int = 0
) -> list[Asked]:
    """Streams whose prompts nobody else has, numbered from the first on."""
    salt = f"{tenant}-{first}"
    return [
        Asked(
            "flood",
            "/v1/completions",
            one.body | {"prompt": [1000 + first + number] + [999] * (num_prompt_tokens - 1)},
            tenant,
        )
        for number, one in enumerate(streams(count, max_tokens, salt))
    ]


def first_token_s(history: History) -> float:
    """Of a stream that has begun."""
    return history.choices[0].token_times[0] - history.began_at


@pytest.mark.slow
async def test_one_tenant_floods_and_another_asks_one_thing_at_a_time(
    stack: Served, figures: Figures
) -> None:
    async def one_at_a_time(first: int) -> list[float]:
        seconds = []
        for asked in of_tenant("B", NUM_BESIDE, ITS_PROMPT, ITS_OUTPUT, first=first):
            [history] = await told(stack.url, [asked])
            check_ended(history)
            seconds.append(first_token_s(history))
        return seconds

    alone = await one_at_a_time(0)
    asked = of_tenant("A", FLOOD, ITS_PROMPT, ITS_OUTPUT)
    for number, one in enumerate(asked):  # they do not all end in one step
        one.body["max_tokens"] += number * 5 % ITS_OUTPUT
    flood = Load(stack.url, asked)
    await stack.until_queued(FLOOD - NUM_SLOTS)
    beside = await one_at_a_time(NUM_BESIDE)
    unanswered = sum(not history.num_tokens for history in flood.histories)
    assert unanswered > FLOOD / 2, "B has stood behind requests of A's"
    await flood.leave()
    ratio = statistics.median(beside) / statistics.median(alone)
    measured = {
        "first token alone, median, s": statistics.median(alone),
        "first token beside it, median, s": statistics.median(beside),
        "A's requests that still wait for theirs": unanswered,
    }
    target = Target("B's time to first token, times that alone", ratio, TTFT_TARGET)
    figures.add(f"A floods with {FLOOD} requests, B asks one at a time", measured, target)
    await check_nothing_left(stack)


@pytest.mark.slow
async def test_tenants_who_all_want_more_get_even_shares(stack: Served, figures: Figures) -> None:
    """Of what it costs, whatever their requests are like."""
    loads = {
        tenant: Load(stack.url, of_tenant(tenant.replace(" ", "-"), 80, *shape))
        for tenant, shape in SHAPES.items()
    }

    def costs() -> dict[str, float]:
        return {
            tenant: sum(
                SHAPES[tenant][0] + OUTPUT_WEIGHT * history.num_tokens
                for history in load.histories
                if history.num_tokens
            )
            for tenant, load in loads.items()
        }

    async with asyncio.timeout(5 * PATIENCE_S):
        while sum(costs().values()) < SHARED_COST:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    shares = costs()
    for tenant, load in loads.items():
        assert not all(history.num_tokens for history in load.histories), f"{tenant} has enough"
    assert min(shares.values()) > 0
    for load in loads.values():
        await load.leave()
    target = Target("Jain's index of what tenants got", jain([*shares.values()]), JAIN_TARGET, True)
    figures.add("tenants who all want more", {"cost": shares}, target)
    await check_nothing_left(stack)
