"""Answers that are not read: whatever they are, they end, and leave nothing behind."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router import engine, http_protocol
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

MIB = 1 << 20
LONG_TEXT = {"prompt": "xyz" * (MIB // 4)}
"""Its tokens, as JSON, are more than the kernel keeps for who does not read."""
SEND_S = 0.3
STORY = {"prompt": "xyz", "max_tokens": 1_000_000, "logprobs": 5, "stream": True}


@pytest.fixture
async def router(
    start_router: StartRouter, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Router]:
    monkeypatch.setattr(http_protocol, "SEND_S", SEND_S)
    scheduler.max_model_len = 10_000_000
    async with start_router(max_body_bytes=8 * MIB) as router:
        yield router


async def test_who_does_not_read_a_whole_answer_is_hung_up_on(router: Router) -> None:
    """Until then somebody waits for it who holds a permit."""
    permits = router.backend.permits
    with await _ask(router, "/tokenize", LONG_TEXT) as client:
        await until(lambda: permits.num_taken == 1)
        head = (await asyncio.get_running_loop().sock_recv(client, 500)).partition(b"\r\n\r\n")[0]
        promised = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert permits.num_taken == 1, "it is written, and not taken"
        await until(lambda: permits.num_taken == 0)
        assert await _all_of(client) < promised - MIB


async def test_who_does_not_read_a_stream_is_hung_up_on(
    router: Router, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_UNREAD_TOKENS", 10_000_000)
    with await _ask(router, "/v1/completions", STORY):
        await until(lambda: len(scheduler.aborted) == 1, timeout_s=60)
        await until(lambda: router.backend.permits.num_taken == 0)


async def test_who_reads_slowly_gets_all_of_it(router: Router) -> None:
    """A piece at a time, over many times the limit on each."""
    body = json.dumps(LONG_TEXT).encode()
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=router.address, timeout=60) as http:
        want = (await http.post("/tokenize", content=body, headers=headers)).content
    with await _ask(router, "/tokenize", LONG_TEXT, room=MIB // 8) as client:
        got = b""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        while not got.endswith(want[-64:]):
            part = await loop.sock_recv(client, MIB // 8)
            assert part, "it was cut off"
            got += part
            await asyncio.sleep(0.02)
        assert got.endswith(want)
        assert loop.time() - began_at > SEND_S


async def test_many_answers_are_asked_for_and_none_is_read(
    router: Router,
) -> None:
    """One behind the other, on one connection; small ones, of which there is no permit."""
    with await _connect(router) as client:
        ask = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
        loop = asyncio.get_running_loop()

        async def ask_on() -> None:
            while True:
                await loop.sock_sendall(client, ask)
                await asyncio.sleep(0)

        async with asyncio.timeout(60):
            with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
                await ask_on()


async def _connect(router: Router, room: int = 2048) -> socket.socket:
    """With little room for what is unread."""
    url = httpx.URL(router.address)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (url.host, url.port))
    return client


async def _ask(router: Router, path: str, body: dict[str, Any], room: int = 2048) -> socket.socket:
    client = await _connect(router, room)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(content)}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(client, head.encode() + content)
    return client


async def _all_of(client: socket.socket) -> int:
    """Bytes until the connection ends, however it does."""
    num_bytes = 0
    loop = asyncio.get_running_loop()
    try:
        while part := await loop.sock_recv(client, MIB):
            num_bytes += len(part)
    except ConnectionError:
        pass
    return num_bytes
