"""Bytes that are no request, on the ports where requests are expected: whoever sends them is told
or hung up on, and everyone else is served."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest

from protos.quire.v1 import inference_pb2
from router.server import Router
from tests.router.conftest import StartRouter, until

GENERATE = "/quire.v1.InferenceService/Generate"
METHODS = (
    GENERATE,
    "/quire.v1.InferenceService/Embed",
    "/quire.v1.InferenceService/Tokenize",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
)
TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(range(160))
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
GARBAGE = {
    "TLS": TLS_HELLO,
    "HTTP/2": HTTP2_PREFACE,
    "zeros": bytes(4096),
    "noise": random.Random(0).randbytes(65536),
    "a line without end": b"G" * (1 << 18),
    "a method that is none": b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a version that is none": b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
    "a header that is none": b"GET /health HTTP/1.1\r\n\x00\x01: \xff\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
    b"content-length: 2\r\n\r\nab",
    "a negative length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "a chunk of no size": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
    b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    "gRPC": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + b"\x04" + bytes(5),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_on_the_http_port(router: Router, http: httpx.AsyncClient, name: str) -> None:
    host, _, port = router.address.removeprefix("http://").partition(":")
    answer = await _said(host, int(port), GARBAGE[name])
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert (await http.get("/health")).status_code == 200
    answered = await http.post("/v1/completions", json={"prompt": "xyz", "max_tokens": 2})
    assert answered.status_code == 200
    await until(lambda: router.backend.permits.num_taken + router.backend.uploads.num_taken == 0)


@pytest.mark.parametrize("name", GARBAGE)
async def test_on_the_grpc_port(router: Router, name: str) -> None:
    host, _, port = router.grpc_address.partition(":")
    await _said(host, int(port), GARBAGE[name])
    async with _calling(router) as channel:
        request = inference_pb2.GenerateRequest(text="xyz")
        request.sampling.max_tokens = 2
        assert await _code(channel, request.SerializeToString()) is grpc.StatusCode.OK


@pytest.mark.parametrize(
    "message",
    [b"\xff" * 100, b"\x0a\x7f\x01", b"\x0a\x02\xff\xfe", random.Random(1).randbytes(4096)],
    ids=["no tag", "cut off", "no UTF-8", "noise"],
)
async def test_a_message_that_is_none(router: Router, message: bytes) -> None:
    async with _calling(router) as channel:
        for method in METHODS:
            code = await _code(channel, message, method)
            assert code is grpc.StatusCode.INVALID_ARGUMENT, method
        assert router.backend.permits.num_taken == 0


async def test_a_message_over_the_limit(start_router: StartRouter) -> None:
    async with start_router(max_body_bytes=1 << 16) as router, _calling(router) as channel:
        request = inference_pb2.GenerateRequest(text="x" * (1 << 17))
        code = await _code(channel, request.SerializeToString())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_fields_that_nobody_knows(router: Router) -> None:
    """As a newer client would send."""
    async with _calling(router) as channel:
        request = inference_pb2.GenerateRequest(text="xyz")
        request.sampling.max_tokens = 2
        unknown = b"\xfa\xff\x07\x03abc"  # field 16383
        assert await _code(channel, request.SerializeToString() + unknown) is grpc.StatusCode.OK


async def _said(host: str, port: int, content: bytes) -> bytes:
    """What comes back until the other side hangs up, or has nothing more to say to it."""
    loop = asyncio.get_running_loop()
    with socket.create_connection((host, port)) as client:
        client.setblocking(False)
        answer = b""
        try:
            async with asyncio.timeout(0.5):
                await loop.sock_sendall(client, content)
                while part := await loop.sock_recv(client, 65536):
                    answer += part
        except (TimeoutError, OSError):
            pass
        return answer


@asynccontextmanager
async def _calling(router: Router) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(
        router.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        yield channel


async def _code(
    channel: grpc.aio.Channel, message: bytes, method: str = GENERATE
) -> grpc.StatusCode:
    """How a call with these bytes as its request ends."""
    call_method: Any = channel.unary_stream(method)
    call = call_method(message)
    async with asyncio.timeout(20):
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK
