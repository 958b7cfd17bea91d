"""Clients leave at random moments, over HTTP and gRPC; nothing of what they asked for stays.

Before the first token, in the middle of a stream, at its last event; with a reset or in order. Each
request asks for far more tokens than may be generated after its client has left, so one that went
on would show.
"""

import asyncio
import json
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from quire import AsyncClient, SamplingParams
from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve

MODEL = "smollm2"
MAX_TOKENS = 900
AT_ONCE = 10
"""Clients."""
MAX_GENERATED_UNREAD = 20
"""Tokens per request that its client did not read: on their way, or of steps that ran meanwhile."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request, and when its client leaves."""

    over_http: bool
    prompt: list[int]
    num_samples: int
    max_tokens: int
    leaves_after_s: float | None
    """Whatever has come until then."""
    leaves_after_chunks: int
    resets: bool
    """The connection ends without a word: a reset, a channel that is gone."""


def visits(count: int, seed: int) -> list[Visit]:
    """Of all kinds, mixed."""
    dice = random.Random(seed)
    return [_visit(dice, kind) for kind in dice.sample(["early", "mid", "last"] * count, count)]


def _visit(dice: random.Random, kind: str) -> Visit:
    ends = kind == "last"
    return Visit(
        over_http=dice.random() < 0.5,
        prompt=[dice.randrange(1000, 2000) for _ in range(dice.choice((4, 40, 400)))],
        num_samples=1 if ends else dice.choice((1, 1, 2)),
        max_tokens=dice.randint(1, 6) if ends else MAX_TOKENS,
        leaves_after_s=dice.choice((0.0, dice.uniform(0, 0.6))) if kind == "early" else None,
        leaves_after_chunks=1 << 30 if ends else dice.randint(1, 12),
        resets=dice.random() < 0.5,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(MODEL, tmp_path_factory.mktemp("run"), "--max-model-len", "2048") as running:
        yield running


@pytest.mark.parametrize(
    "count", [30, pytest.param(200, marks=pytest.mark.slow)], ids=lambda count: f"{count} moments"
)
async def test_nothing_stays_of_clients_that_left(server: Server, count: int) -> None:
    async def spend(visit: Visit) -> int:
        return await (_over_http if visit.over_http else _over_grpc)(server, visit)

    everyone = visits(count, seed=count)
    assert {visit.over_http for visit in everyone} == {True, False}
    for start in range(0, count, AT_ONCE):
        group = everyone[start : start + AT_ONCE]
        generated_before = idle_state(server.state)["generated_tokens"]
        read = sum(await asyncio.gather(*map(spend, group)))
        state = idle_state(server.state)
        blocks = state["blocks"]
        assert blocks["used"] == 0
        assert blocks["free"] + blocks["cached"] == blocks["total"]
        unread = state["generated_tokens"] - generated_before - read
        assert unread <= MAX_GENERATED_UNREAD * len(group)
    assert _metric(server, "quire:requests_in_flight{") == 0
    assert _metric(server, 'finished_reason="error"') == 0


async def _over_http(server: Server, visit: Visit) -> int:
    """Tokens read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    if visit.resets:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.write(_http_request(visit))
    await writer.drain()
    num_read = 0

    async def read() -> None:
        nonlocal num_read
        num_chunks = 0
        while num_chunks < visit.leaves_after_chunks and (line := await reader.readline()):
            if not line.startswith(b"data: {"):
                continue
            num_chunks += 1
            [choice] = json.loads(line.removeprefix(b"data: "))["choices"]
            num_read += len(choice["token_ids"])
            if choice["finish_reason"]:
                return

    await _until_it_leaves(read(), visit)
    writer.transport.abort() if visit.resets else writer.close()
    return num_read


def _http_request(visit: Visit) -> bytes:
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": visit.prompt,
        "n": visit.num_samples,
        "max_tokens": visit.max_tokens,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-length: {len(content)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + content


async def _over_grpc(server: Server, visit: Visit) -> int:
    """Tokens read."""
    params = SamplingParams(n=visit.num_samples, max_tokens=visit.max_tokens, ignore_eos=True)
    async with AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
        stream = client.stream(visit.prompt, params)
        num_read = 0

        async def read() -> None:
            nonlocal num_read
            for _ in range(visit.leaves_after_chunks):
                chunk = await anext(stream, None)
                if chunk is None:
                    return
                num_read += len(chunk.token_ids)

        await _until_it_leaves(read(), visit)
        if not visit.resets:
            await stream.cancel()
    return num_read


async def _until_it_leaves(reading: Any, visit: Visit) -> None:
    """Reads for as long as the client means to stay."""
    task = asyncio.create_task(reading)
    await asyncio.wait([task], timeout=60 if visit.leaves_after_s is None else visit.leaves_after_s)
    if visit.leaves_after_s is None:
        assert task.done(), "nothing came"
    if task.done():
        task.result()
    else:
        task.cancel()
        await asyncio.wait([task])


def _metric(server: Server, name: str) -> float:
    """The sum of the router's samples whose line has this in it."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    found = [line for line in lines if name in line and not line.startswith("#")]
    assert found
    return sum(float(line.rpartition(" ")[2]) for line in found)
