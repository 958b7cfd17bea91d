"""/ready tells what a client would meet, /health tells of the process itself, and neither lies."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.recording import Target
from tests.chaos.pauses import Figures
from tests.chaos.stack import PATIENCE_S, Served
from tests.chaos.streams import Load, told
from tests.chaos.test_clients import stories
from tests.chaos.traffic import Asked
from tests.e2e.server import serve

pytestmark = pytest.mark.chaos

STEP_TIMEOUT_S = 3.0
NUM_PREFILLED = 4000
POLL_S = 0.05


@pytest.fixture(
    scope="module", params=["one step", pytest.param("steps of 64", marks=pytest.mark.slow)]
)
def how(request: pytest.FixtureRequest) -> str:
    """What a long prompt is computed in."""
    said: str = request.param
    return said


@pytest.fixture(scope="module")
def stack(how: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Whose steps are as long as can be, or as many."""
    budget = {"one step": 8192, "steps of 64": 64}[how]
    runtime_dir: Path = tmp_path_factory.mktemp("run")
    flags = ("--max-model-len", "4608", "--max-num-batched-tokens", str(budget))
    stays = ("--hang-timeout", "0")  # what is stopped shall go on
    with serve(
        "smollm2", runtime_dir, *flags, *stays, "--step-timeout", str(STEP_TIMEOUT_S)
    ) as server:
        stack = Served(server, runtime_dir)
        yield stack
        stack.signal("worker-0", signal.SIGCONT)


class Watch:
    """Asks /ready and /health again and again, until it is told to stop."""

    def __init__(self, url: str) -> None:
        self.ready: list[tuple[float, int]] = []
        """When it was asked, and the status."""
        self.health: Counter[int] = Counter()
        self._url = url
        self._task = asyncio.create_task(self._run())

    async def until(self, status: int) -> float:
        """When /ready was asked that first said this from now on."""
        since = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for at, said in reversed(self.ready):
                    if at >= since and said == status:
                        return at
                await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """No more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            while True:
                at = time.monotonic()
                self.ready.append((at, (await client.get("/ready")).status_code))
                self.health[(await client.get("/health")).status_code] += 1
                await asyncio.sleep(POLL_S)


async def test_a_long_prefill_is_no_reason_to_be_unready(
    stack: Served, figures: Figures, how: str
) -> None:
    watch = Watch(stack.url)
    body = stories(1, 2, "prefill")[0].body | {"prompt": list(range(100, 100 + NUM_PREFILLED))}
    began_at = time.monotonic()
    [history] = await told(stack.url, [Asked("long", "/v1/completions", body)])
    seconds = time.monotonic() - began_at
    await watch.stop()
    assert not history.errors
    assert history.usages[0]["prompt_tokens"] == NUM_PREFILLED
    num_unready = sum(status != 200 for _, status in watch.ready)
    asked = {"seconds": seconds, "times asked": len(watch.ready)}
    target = Target(f"/ready other than 200 in a long prefill, {how}", num_unready, 0.0)
    figures.add(f"/ready in a prefill of {NUM_PREFILLED} tokens, {how}", asked, target)
    assert not num_unready
    assert set(watch.health) == {200}


async def test_a_stopped_worker_is_not_ready(stack: Served, figures: Figures, how: str) -> None:
    """It is the only one; in the middle of streams, which go on as soon as it does."""
    load = Load(stack.url, stories(4, 200, "stopped"))
    watch = Watch(stack.url)
    await load.begun()
    stopped_at = time.monotonic()
    stack.signal("worker-0", signal.SIGSTOP)
    seconds = await watch.until(503) - stopped_at
    stack.signal("worker-0", signal.SIGCONT)
    await watch.until(200)
    for history in await load.ended():
        assert not history.errors
    await watch.stop()
    assert set(watch.health) == {200}
    target = Target(f"/ready 503, step deadlines, {how}", seconds / STEP_TIMEOUT_S, 2.0)
    figures.add(f"/ready, the only worker is stopped, {how}", {"503 after, s": seconds}, target)
