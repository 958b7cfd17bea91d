"""A scheduler that has a defect ends as soon as it shows, and the next one goes on."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from scheduler.guard import Guard
from tests.scheduler.peers import FakeRank, FakeRouter, Peer, column, token_at, within_time

ROOT = Path(__file__).parents[2]
PROMPT = [1, 2, 3]
MAX_TOKENS = 8
WHOLE = [token_at(len(PROMPT) + n) for n in range(MAX_TOKENS)]


class Schedulers:
    """One after the other at the same address; each ends with the test."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._started: list[asyncio.subprocess.Process] = []

    async def start(self, *module: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module, "--listen", self.address, "--metrics-port", "0"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        assert process.stdout is not None
        line = await within_time(process.stdout.readline())
        assert line.startswith(b"quire-ready "), (line, await process.communicate())
        return process

    async def end(self) -> None:
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.communicate()


@pytest.fixture
async def schedulers(tmp_path: Path) -> AsyncIterator[Schedulers]:
    started = Schedulers(f"unix:{tmp_path}/scheduler.sock")
    yield started
    await Peer.hang_up_all()
    await started.end()


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("abort", 1),  # called by a router's stream
        ("schedule", 1),  # by a timer, for a replica that idles
        ("schedule", 2),  # by another one, a moment later
        ("schedule", 5),  # by a worker's result
        ("apply", 3),
        ("expire", 1),  # by a timer
        ("detach", 1),  # by the end of a stream
    ],
)
async def test_a_defect_ends_it_and_nothing_else(
    schedulers: Schedulers, method: str, number: int
) -> None:
    faulty = await schedulers.start("tests.scheduler.faulty", method, str(number))
    rank = await FakeRank.attached(schedulers.address)
    router = await FakeRouter.connected(schedulers.address)
    deadline_s = 0.05 if method == "expire" else 0.0
    if method in ("expire", "detach"):
        rank.go.clear()
    working = asyncio.create_task(rank.work())
    await router.submit(1, PROMPT, max_tokens=MAX_TOKENS, deadline_s=deadline_s)
    if method == "detach":
        await rank.break_off()
    if method == "abort":
        await router.abort(2)

    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await router.until_finished(1)
    _, said = await within_time(faulty.communicate())
    assert faulty.returncode == 1
    assert said.decode().count(" scheduler critical a defect of the scheduler's own") == 1
    assert said.decode().endswith("ValueError: a defect\n")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    told = router.tokens.get(1, [])
    assert not router.finished  # nobody was blamed
    assert told == WHOLE[: len(told)]

    await schedulers.start("scheduler")
    rank = await FakeRank.attached(schedulers.address)
    working = asyncio.create_task(rank.work())
    router = await FakeRouter.connected(schedulers.address)
    known = column(*PROMPT, *told)
    await router.submit(1, PROMPT, token_id=known, max_tokens=MAX_TOKENS, resubmitted=True)
    await router.until_finished(1)
    assert told + router.tokens[1] == WHOLE
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_a_request_that_shows_a_defect_when_it_comes_ends_alone(
    schedulers: Schedulers,
) -> None:
    """Else routers would bring it to every scheduler that follows."""
    faulty = await schedulers.start("tests.scheduler.faulty", "accept", "2")
    rank = await FakeRank.attached(schedulers.address)
    router = await FakeRouter.connected(schedulers.address)
    working = asyncio.create_task(rank.work())
    for sequence_id, num_samples in ((1, 1), (2, 2), (4, 1)):
        await router.submit(sequence_id, PROMPT, max_tokens=MAX_TOKENS, num_samples=num_samples)
    await router.until_finished(1, 2, 3, 4)
    failed = {i: end.message for i, end in router.finished.items() if end.message}
    assert failed == dict.fromkeys((2, 3), "the server could not take the request")
    assert (router.tokens[1], router.tokens[4]) == (WHOLE, WHOLE)
    assert faulty.returncode is None
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


def test_what_is_foreseen_passes_and_what_is_not_ends_it() -> None:
    ends: list[bool] = []
    guard = Guard(lambda: ends.append(True))
    with pytest.raises(KeyError), guard.watching(KeyError):
        raise KeyError
    assert not ends
    with pytest.raises(ValueError, match="x"):
        guard.run(int, "x")
    assert ends == [True]
