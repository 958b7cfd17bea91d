"""A thousand requests, a third of them abandoned: nothing stays behind."""

import asyncio
import random
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve

NUM_REQUESTS = 1000
WARM = 200
IN_FLIGHT = 32
ALLOWED_GROWTH = 0.05


async def _one(client: httpx.AsyncClient, rng: random.Random, number: int) -> None:
    """Streams an answer; with probability one third leaves in the middle of it."""
    body = {
        "model": "smollm2",
        "prompt": [rng.randrange(3, 40000) for _ in range(rng.randrange(4, 60))],
        "max_tokens": rng.randrange(1, 24),
        "seed": number,
        "stream": True,
    }
    leave_after = rng.randrange(0, 6) if rng.random() < 1 / 3 else None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        seen = 0
        async for _ in response.aiter_lines():
            if leave_after is not None and seen >= leave_after:
                return
            seen += 1


async def _load(server: Server, numbers: range) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:

        async def guarded(number: int) -> None:
            async with gate:
                await _one(client, random.Random(number), number)

        await asyncio.gather(*(guarded(number) for number in numbers))


@pytest.mark.slow
async def test_a_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    with serve("smollm2", tmp_path, "--max-model-len", "512", "--num-blocks", "512") as server:
        processes = {
            role: psutil.Process(server.processes()[role]) for role in ("router", "scheduler")
        }
        await _load(server, range(WARM))
        await asyncio.to_thread(idle_state, server.state)
        before = {role: process.memory_info().rss for role, process in processes.items()}
        await _load(server, range(WARM, NUM_REQUESTS))
        state = await asyncio.to_thread(idle_state, server.state)
        blocks = state["blocks"]
        assert blocks["free"] + blocks["cached"] == blocks["total"]
        after = {role: process.memory_info().rss for role, process in processes.items()}
        growth = {role: after[role] / before[role] - 1 for role in processes}
        print(f"\nmemory growth from request {WARM} to {NUM_REQUESTS}: {growth}")
        assert max(growth.values()) < ALLOWED_GROWTH, growth
