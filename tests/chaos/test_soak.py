"""Twenty thousand short requests, a tenth of them abandoned: no process grows.

    make chaos ARGS="-k 'soak and full'"
    QUIRE_SOAK_REQUESTS=100000 make chaos ARGS="-k 'soak and full'"

A model of next to no size, so that what is measured is what requests leave behind. They come in
parts, after each of which all is idle and the memory of every process is read. What a process takes
once belongs to the first half: a worker's primitives of matrix products (`worker.primitive_caches`)
and what malloc keeps for each thread. The least of the first half and of the second are compared,
since a reading may fall on what is about to be given back. The short form is in the default tier
and judges no memory; so few requests are no measure.
"""

import asyncio
import os
import random
from collections.abc import Iterator

import aiohttp
import psutil
import pytest

from bench.recording import Target
from tests.chaos.by_hand import MODEL
from tests.chaos.checker import check_nothing_left
from tests.chaos.pauses import Figures
from tests.chaos.small import small_model
from tests.chaos.stack import Served, running

pytestmark = pytest.mark.chaos

IN_FLIGHT = 64
ABANDONED = 0.1
FULL = int(os.environ.get("QUIRE_SOAK_REQUESTS", "20000"))
NUM_PARTS = 8
ALLOWED = 1.05
"""Growth."""
MIB = 1 << 20


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = small_model(tmp_path_factory.mktemp("models") / "small")
    flags = ("--served-model-name", MODEL, "--num-blocks", "512")
    with running(model, tmp_path_factory.mktemp("run"), *flags) as served:
        yield served


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    "count",
    [pytest.param(400, id="short"), pytest.param(FULL, id="full", marks=pytest.mark.slow)],
)
async def test_soak(stack: Served, figures: Figures, count: int) -> None:
    sizes: list[dict[str, int]] = []
    descriptors: list[dict[str, int]] = []
    left = 0
    for part in range(NUM_PARTS):
        left += await _ask(stack, range(part * count // NUM_PARTS, (part + 1) * count // NUM_PARTS))
        await check_nothing_left(stack)
        sizes.append(_sizes(stack))
        descriptors.append(_descriptors(stack))
    assert ABANDONED / 2 < left / count < ABANDONED * 2
    figures.add(
        f"soak of {count} requests, {left} left in the middle; MiB after each {count // NUM_PARTS}",
        {name: [round(at[name] / MIB, 1) for at in sizes] for name in sizes[0]},
    )
    for name, before in descriptors[0].items():
        assert descriptors[-1][name] <= before + 4, (name, descriptors)
    if count == FULL:
        half = NUM_PARTS // 2
        growth = {
            name: min(at[name] for at in sizes[half:]) / min(at[name] for at in sizes[:half])
            for name in sizes[0]
        }
        most = max(growth.values())
        target = Target("least memory, second half to first, process that grew most", most, ALLOWED)
        figures.add("growth", growth, target)
        assert most < ALLOWED, growth


async def _ask(stack: Served, numbers: range) -> int:
    """How many were abandoned."""
    gate = asyncio.Semaphore(IN_FLIGHT)
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(stack.url, connector=connector) as client:

        async def one(number: int) -> bool:
            async with gate:
                return await _one(client, random.Random(number), number)

        return sum(await asyncio.gather(*map(one, numbers)))


async def _one(client: aiohttp.ClientSession, dice: random.Random, number: int) -> bool:
    """Streams an answer; whether it left in the middle."""
    body = {
        "prompt": [dice.randrange(3, 400) for _ in range(dice.randrange(4, 60))],
        "max_tokens": dice.randrange(8, 24),
        "ignore_eos": True,
        "seed": number,
        "temperature": 1.0,
        "stream": True,
        "user": f"user-{number}",
        "cache_salt": f"salt-{number % 1000}",
    }
    leaves = dice.random() < ABANDONED
    patience = dice.randrange(0, 6)
    async with client.post("/v1/completions", json=body) as response:
        assert response.status == 200
        num_lines, last = 0, b""
        async for line in response.content:
            if leaves and num_lines >= patience:
                response.close()
                return True
            num_lines += 1
            last = line.strip() or last
        assert last == b"data: [DONE]", last
    return False


def _sizes(stack: Served) -> dict[str, int]:
    """Bytes of memory that are each process's own, the supervisor's and the transports' too."""
    return {name: process.memory_full_info().uss for name, process in _everyone(stack).items()}


def _descriptors(stack: Served) -> dict[str, int]:
    """How many each has open."""
    return {name: process.num_fds() for name, process in _everyone(stack).items()}


def _everyone(stack: Served) -> dict[str, psutil.Process]:
    found = {name: psutil.Process(stack.pid(name)) for name in stack.processes()}
    found["worker-0's transport"] = psutil.Process(stack.transport_of("worker-0"))
    found["supervisor"] = psutil.Process(stack.server.process.pid)
    return found
