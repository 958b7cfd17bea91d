"""`InferenceClient` before a router that is busy, or that never will take a message."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from protos.quire.v1 import inference_pb2, inference_pb2_grpc
from quire import client as quire_client
from quire.client import InferenceClient
from quire.errors import RequestFailed

Context = grpc.aio.ServicerContext[inference_pb2.TokenizeRequest, inference_pb2.TokenizeResponse]
PUSHBACK = (("grpc-retry-pushback-ms", "1"),)


class BusyRouter(inference_pb2_grpc.InferenceServiceServicer):
    """Fails some calls before it answers one."""

    def __init__(self, code: grpc.StatusCode, trailers: tuple[tuple[str, str], ...]) -> None:
        self.code, self.trailers = code, trailers
        self.num_failures, self.num_calls = 2, 0

    async def Tokenize(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            context.set_trailing_metadata(self.trailers)
            await context.abort(self.code, "not now")
        return inference_pb2.TokenizeResponse(token_ids=[len(request.text)])


@asynccontextmanager
async def dialled(router: BusyRouter) -> AsyncIterator[InferenceClient]:
    """A client of that router."""
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", 4096),))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = InferenceClient(f"127.0.0.1:{port}")
    try:
        yield client
    finally:
        await client.close()
        await server.stop(None)


@pytest.mark.parametrize(
    ("code", "trailers"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, PUSHBACK),
        (grpc.StatusCode.UNAVAILABLE, PUSHBACK),
        (grpc.StatusCode.UNAVAILABLE, ()),
    ],
)
async def test_a_router_that_is_busy_is_asked_again(
    code: grpc.StatusCode, trailers: tuple[tuple[str, str], ...]
) -> None:
    router = BusyRouter(code, trailers)
    async with dialled(router) as client:
        assert await client.tokenize("abc") == [3]
    assert router.num_calls == 3


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED],
)
async def test_an_error_that_stays_is_told_at_once(code: grpc.StatusCode) -> None:
    router = BusyRouter(code, ())
    async with dialled(router) as client:
        with pytest.raises(RequestFailed, match="not now"):
            await client.tokenize("abc")
    assert router.num_calls == 1


async def test_a_message_that_is_too_large_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC refuses it with the code of an overloaded router."""
    monkeypatch.setattr(quire_client, "_FIRST_RETRY_S", 3600)
    router = BusyRouter(grpc.StatusCode.OK, ())
    async with dialled(router) as client:
        with pytest.raises(RequestFailed, match="larger than max"):
            await client.tokenize("x" * 5000)
    assert router.num_calls == 0


async def test_a_router_that_stays_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quire_client, "_FIRST_RETRY_S", 0.0)
    router = BusyRouter(grpc.StatusCode.UNAVAILABLE, ())
    router.num_failures = 1000
    async with dialled(router) as client:
        with pytest.raises(RequestFailed, match="not now"):
            await client.tokenize("abc")
    assert router.num_calls == 30
