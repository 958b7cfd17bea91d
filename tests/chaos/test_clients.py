"""Clients that leave in the middle, or hardly read: it costs nobody else anything, and nothing
stays of them."""

import asyncio
import json
import socket
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from bench.recording import Target
from tests.chaos.checker import check_ended, check_nothing_left
from tests.chaos.pauses import Figures
from tests.chaos.stack import Served, running
from tests.chaos.streams import History, Load
from tests.chaos.traffic import Asked, plain

pytestmark = pytest.mark.chaos

FREE_TARGET_S, ITL_TARGET = 1.0, 1.1


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running("smollm2", tmp_path_factory.mktemp("run")) as stack:
        yield stack


def stories(count: int, max_tokens: int, salt: str) -> list[Asked]:
    """Streams of exactly so many tokens."""
    prompts = [f"Story {number}:" for number in range(count)]
    return plain("story", "smollm2", prompts, max_tokens, salt)


@pytest.mark.parametrize(
    "count",
    [pytest.param(20, id="short"), pytest.param(100, id="full", marks=pytest.mark.slow)],
)
async def test_clients_leave_in_the_middle(stack: Served, figures: Figures, count: int) -> None:
    load = Load(stack.url, stories(count, 800, f"leave-{count}"))
    await load.begun()
    at = time.monotonic()
    await load.leave()
    await stack.until_idle()
    seconds = time.monotonic() - at
    target = Target("blocks free after clients left, s", seconds, FREE_TARGET_S)
    figures.add(
        f"{count} clients leave in the middle", {"until nothing is left, s": seconds}, target
    )
    await check_nothing_left(stack)


@pytest.mark.parametrize(
    "tokens",
    [pytest.param(60, id="short"), pytest.param(150, id="full", marks=pytest.mark.slow)],
)
async def test_a_client_that_reads_one_byte_a_second(
    stack: Served, figures: Figures, tokens: int
) -> None:
    """As many streams each time: in peace all are read, and then all but one."""
    alone = Load(stack.url, stories(8, tokens, f"alone-{tokens}"))
    in_peace = await alone.ended()
    slow, *others = stories(8, tokens, f"slow-{tokens}")
    reading = asyncio.create_task(_read_slowly(stack.server.port, slow))
    load = Load(stack.url, others)
    beside = await load.ended()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    for history in [*in_peace, *beside]:
        check_ended(history)
    before, after = _gap_s(in_peace[1:]), _gap_s(beside)
    measured = {"ITL in peace, s": before, "ITL beside it, s": after, "ratio": after / before}
    target = Target("ITL beside a slow reader, ratio", after / before, ITL_TARGET)
    figures.add(f"a client reads a byte a second of {tokens} tokens", measured, target)
    await check_nothing_left(stack)


def _gap_s(histories: list[History]) -> float:
    """Between two events of a stream, in the mean."""
    return statistics.mean(
        after - before
        for history in histories
        for before, after in pairwise(history.choices[0].token_times)
    )


async def _read_slowly(port: int, asked: Asked) -> None:
    """With as little room for what is unread as the system allows."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        content = json.dumps(asked.body).encode()
        head = f"POST {asked.path} HTTP/1.1\r\nhost: here\r\ncontent-length: {len(content)}\r\n"
        request = head.encode() + b"content-type: application/json\r\n\r\n" + content
        await loop.sock_sendall(client, request)
        while True:
            if not await loop.sock_recv(client, 1):
                return
            await asyncio.sleep(1)
