"""Connections as nobody's client library makes them: slow, endless, with something behind."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from router import body as request_body
from router import http_protocol
from router.http_protocol import MAX_HEADER_BYTES, BoundedHttpProtocol
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
POST_CHUNKS = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
    b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
)


@asynccontextmanager
async def connected(
    router: Router,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain connection to it."""
    host, _, port = router.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_headers_without_end(router: Router) -> None:
    async with connected(router) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nx: ")
        for _ in range(4):
            writer.write(b"x" * (MAX_HEADER_BYTES // 2))
        assert (await reader.read(12)) == b"HTTP/1.1 431"


async def test_trailers_without_end(router: Router) -> None:
    """They count like headers: a body may be over and its request still grow."""
    async with connected(router) as (reader, writer):
        writer.write(POST_CHUNKS + b"2\r\n{}\r\n0\r\nx: ")
        await writer.drain()
        for _ in range(64):
            writer.write(b"x" * (MAX_HEADER_BYTES // 4))
        assert (await reader.read(12)) == b"HTTP/1.1 431"
    assert router.backend.uploads.num_taken == 0


async def test_a_body_of_many_chunks_is_not_headers(http: httpx.AsyncClient) -> None:
    """A byte a chunk is five times as much framing as body."""

    async def chunks() -> AsyncIterator[bytes]:
        body = json.dumps({"prompt": "xyz", "max_tokens": 1, "user": "x" * 50_000}).encode()
        for byte in body:
            yield bytes([byte])

    json_headers = {"content-type": "application/json"}
    response = await http.post("/v1/completions", content=chunks(), headers=json_headers)
    assert response.status_code == 200


@pytest.mark.parametrize("before", [b"", GET], ids=["a new connection", "an old one"])
@pytest.mark.parametrize("slow", [b"GET /health HTTP/1.1\r\nx: ", b"\r\n"])
async def test_headers_that_do_not_come(
    router: Router, monkeypatch: pytest.MonkeyPatch, before: bytes, slow: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "HEADERS_S", 0.1)
    async with connected(router) as (reader, writer):
        if before:
            writer.write(before)
            assert await reader.readuntil(b'alive"}')
        writer.write(slow)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_an_answer_is_not_cut_short_by_what_follows_its_request(
    router: Router, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clients send a line break after a body."""
    num_times_impatient = 0
    lose_patience = BoundedHttpProtocol._lose_patience

    def count_and_lose_patience(connection: BoundedHttpProtocol) -> None:
        nonlocal num_times_impatient
        num_times_impatient += 1
        lose_patience(connection)

    monkeypatch.setattr(http_protocol, "HEADERS_S", 0.01)
    monkeypatch.setattr(BoundedHttpProtocol, "_lose_patience", count_and_lose_patience)
    scheduler.hold_at = 2
    async with connected(router) as (reader, writer):
        writer.write(POST_CHUNKS + b'10\r\n{"prompt":"xyz"}\r\n0\r\n\r\n')
        await until(lambda: bool(scheduler.submits))
        writer.write(b"\r\n")
        await until(lambda: num_times_impatient >= 2)
        scheduler.hold_at = None
        assert await reader.read(12) == b"HTTP/1.1 200"


async def test_slow_bodies_hold_nobody_up(start_router: StartRouter) -> None:
    async with (
        start_router(max_in_flight=1) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(4):
            _, writer = await stack.enter_async_context(connected(router))
            writer.write(POST_CHUNKS + b"1\r\n{\r\n")
        await until(lambda: router.backend.uploads.num_taken == 4)
        assert router.backend.permits.num_taken == 0
        response = await http.post("/v1/completions", json={"prompt": "xyz"})
        assert response.status_code == 429
        assert response.json()["error"]["message"].startswith("4 bodies are being read")
    assert router.backend.uploads.num_taken == 0


async def test_a_body_slower_than_the_least_rate(
    router: Router, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "FIRST_S", 0.1)
    async with connected(router) as (reader, writer):
        writer.write(POST_CHUNKS + b"1\r\n{\r\n")
        assert await reader.read(12) == b"HTTP/1.1 408"
        assert b"too slowly: 1 bytes in" in await reader.read()
    assert (await http.get("/health")).status_code == 200
