"""The gRPC clients before a router that is busy, breaks off, is slow, or never takes a message."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from protos.quire.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2
from quire import AsyncClient, Client, SamplingParams
from quire.client import attempts as client_attempts
from quire.client.failures import DETAILS_TRAILER
from quire.errors import (
    AuthenticationFailed,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotServed,
    Overloaded,
    RequestFailed,
    Unavailable,
)

Context = grpc.aio.ServicerContext[Any, Any]
PUSHBACK = (("grpc-retry-pushback-ms", "1"),)
Code = grpc.StatusCode


class Router(inference_pb2_grpc.InferenceServiceServicer):
    """Fails some calls before it answers one: three pieces, one word each."""

    def __init__(
        self, code: Code = Code.OK, trailers: tuple[tuple[str, str | bytes], ...] = ()
    ) -> None:
        self.code, self.trailers = code, trailers
        self.num_failures = 0 if code is Code.OK else 2
        self.num_calls = 0
        self.fails_after = 0
        """Pieces before the failure."""
        self.hangs_after: int | None = None
        """Pieces after which nothing comes any more."""
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.timeouts_s: list[float | None] = []
        self.called = asyncio.Event()
        """A generation has begun."""
        self.cancelled = asyncio.Event()

    async def Tokenize(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            await self._fail(context)
        return inference_pb2.TokenizeResponse(token_ids=[len(request.text)])

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.num_calls += 1
        self.requests.append(request)
        self.called.set()
        self.timeouts_s.append(context.time_remaining())
        fails = self.num_calls <= self.num_failures
        try:
            for number, word in enumerate(("one", "two", "three")):
                if fails and number == self.fails_after:
                    await self._fail(context)
                if number == self.hangs_after:
                    await asyncio.Event().wait()
                piece = inference_pb2.GenerateResponse(text=f"{word} ", token_ids=[number])
                if word == "three":
                    piece.finish_reason = sampling_pb2.FINISH_REASON_STOP
                    piece.usage.num_prompt_tokens = 7
                    piece.usage.num_output_tokens = 3
                yield piece
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _fail(self, context: Context) -> None:
        context.set_trailing_metadata(self.trailers)
        await context.abort(self.code, "not now")


@contextmanager
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@asynccontextmanager
async def serving(router: Router, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Its address."""
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", 4096),))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(router, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def dialled(router: Router, **options: Any) -> AsyncIterator[AsyncClient]:
    """A client of that router."""
    async with serving(router) as address, AsyncClient(address, **options) as client:
        yield client


RETRIED = pytest.mark.parametrize(
    ("code", "trailers"),
    [
        (Code.RESOURCE_EXHAUSTED, PUSHBACK),
        (Code.UNAVAILABLE, PUSHBACK),
        (Code.UNAVAILABLE, ()),
    ],
)


@RETRIED
async def test_a_router_that_is_busy_is_asked_again(
    code: Code, trailers: tuple[tuple[str, str], ...]
) -> None:
    router = Router(code, trailers)
    async with dialled(router) as client:
        assert await client.tokenize("abc") == [3]
    assert router.num_calls == 3


@RETRIED
async def test_so_is_it_for_a_stream_that_has_not_begun(
    code: Code, trailers: tuple[tuple[str, str], ...]
) -> None:
    router = Router(code, trailers)
    async with dialled(router) as client:
        assert [chunk.text async for chunk in client.stream("x")] == ["one ", "two ", "three "]
    assert router.num_calls == 3


@RETRIED
async def test_a_stream_that_has_begun_is_not_sent_again(
    code: Code, trailers: tuple[tuple[str, str], ...]
) -> None:
    router = Router(code, trailers)
    router.fails_after = 1
    async with dialled(router) as client:
        stream = client.stream("x")
        assert (await anext(stream)).text == "one "
        with pytest.raises(RequestFailed, match="not now"):
            await anext(stream)
    assert router.num_calls == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, InvalidRequest),
        (Code.UNAUTHENTICATED, AuthenticationFailed),
        (Code.NOT_FOUND, ModelNotServed),
        (Code.RESOURCE_EXHAUSTED, Overloaded),
        (Code.INTERNAL, RequestFailed),
        (Code.ABORTED, RequestFailed),
    ],
)
async def test_an_error_that_stays_is_told_at_once_by_its_name(
    code: Code, kind: type[RequestFailed]
) -> None:
    router = Router(code)
    async with dialled(router) as client:
        with pytest.raises(kind, match="not now") as caught:
            await client.tokenize("abc")
    assert type(caught.value) is kind
    assert caught.value.retry_after_s is None
    assert router.num_calls == 1


@pytest.mark.parametrize("retryable", [True, False])
async def test_the_detail_of_an_error_is_read(retryable: bool) -> None:
    detail = inference_pb2.ErrorDetail(
        code=inference_pb2.ERROR_CODE_RATE_LIMIT_EXCEEDED, field="n", retryable=retryable
    )
    status = status_pb2.Status(code=8, message="not now")
    status.details.add().Pack(detail)
    router = Router(Code.RESOURCE_EXHAUSTED, ((DETAILS_TRAILER, status.SerializeToString()),))
    async with dialled(router, max_retries=1) as client:
        with pytest.raises(Overloaded, match="not now") as caught:
            await client.tokenize("abc")
    assert (caught.value.field, caught.value.code) == ("n", "rate_limit_exceeded")
    assert caught.value.retry_after_s == (0 if retryable else None)
    assert router.num_calls == (2 if retryable else 1)


async def test_a_detail_that_cannot_be_read_is_left_out() -> None:
    router = Router(Code.INVALID_ARGUMENT, ((DETAILS_TRAILER, b"\xff\xff"),))
    async with dialled(router) as client:
        with pytest.raises(InvalidRequest, match="not now") as caught:
            await client.tokenize("abc")
    assert (caught.value.field, caught.value.code) == (None, None)


async def test_the_routers_word_for_do_not_retry_is_kept() -> None:
    router = Router(Code.UNAVAILABLE, (("grpc-retry-pushback-ms", "-1"),))
    async with dialled(router) as client:
        with pytest.raises(Unavailable, match="not now"):
            await client.generate("x")
    assert router.num_calls == 1


async def test_the_routers_pause_is_kept_and_told() -> None:
    router = Router(Code.UNAVAILABLE, (("grpc-retry-pushback-ms", "300"),))
    router.num_failures = 1
    async with dialled(router) as client:
        began = time.monotonic()
        await client.generate("x")
        assert time.monotonic() - began >= 0.3
    router.num_calls = 0
    async with dialled(router, max_retries=0) as client:
        with pytest.raises(Unavailable) as caught:
            await client.generate("x")
    assert caught.value.retry_after_s == 0.3


async def test_nobody_waits_for_minutes_without_having_been_asked() -> None:
    router = Router(Code.UNAVAILABLE, (("grpc-retry-pushback-ms", "60001"),))
    async with dialled(router) as client:
        with pytest.raises(Unavailable, match="not now") as caught:
            await client.generate("x")
    assert router.num_calls == 1
    assert caught.value.retry_after_s == 60.001


async def test_a_message_that_is_too_large_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC refuses it with the code of an overloaded router."""
    monkeypatch.setattr(client_attempts, "FIRST_BACKOFF_S", 3600)
    router = Router()
    async with dialled(router) as client:
        with pytest.raises(Overloaded, match="larger than max"):
            await client.tokenize("x" * 5000)
    assert router.num_calls == 0


async def test_where_nobody_ever_answered_nobody_is_waited_for_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with nobody() as target:
        async with AsyncClient(target) as client:
            began = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await client.tokenize("abc")
            waited_s = time.monotonic() - began
            stream = client.stream("x")
            with pytest.raises(Unavailable):
                await anext(stream)
    assert str(caught.value) == (
        f"no answer from the router at {target}: nobody listens there "
        "(wait_for_ready=True waits for it)"
    )
    assert waited_s < client_attempts.STRANGER_S + 5  # of all attempts it would be a minute
    assert caplog.records == []


async def test_that_it_is_waited_for_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is waited for as long as there is time, however many attempts that takes."""
    monkeypatch.setattr(client_attempts, "LAST_BACKOFF_S", 0.05)
    with nobody() as target:
        async with AsyncClient(target, timeout=1, max_retries=0, wait_for_ready=True) as client:
            began = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await client.tokenize("abc")
            assert time.monotonic() - began > 0.5
    why = f"no answer from the router at {target}: nobody listens there"
    assert str(caught.value) == why
    assert [record.message for record in caplog.records] == [f"{why}; trying again"]


async def test_a_router_that_is_not_ready_is_waited_for_too() -> None:
    router = Router(Code.UNAVAILABLE, PUSHBACK)
    async with dialled(router, max_retries=0, wait_for_ready=True) as client:
        assert await client.tokenize("abc") == [3]
    assert router.num_calls == 3
    router = Router(Code.RESOURCE_EXHAUSTED, PUSHBACK)
    async with dialled(router, max_retries=1, wait_for_ready=True) as client:
        with pytest.raises(Overloaded):
            await client.tokenize("abc")


@pytest.mark.parametrize(("waits", "stranger_s"), [(True, 0.0), (False, 60.0)])
async def test_a_router_that_starts_late_is_met(
    waits: bool, stranger_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within two seconds by anybody, later by whoever waits."""
    monkeypatch.setattr(client_attempts, "STRANGER_S", stranger_s)
    router = Router()
    with nobody() as target:
        pass
    async with AsyncClient(target, wait_for_ready=waits) as client:
        asking = asyncio.create_task(client.tokenize("abc"))
        await asyncio.sleep(0.3)
        assert not asking.done()
        async with serving(router, target):
            assert await asking == [3]


async def test_a_router_that_is_away_for_a_while_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests in flight survive its restart, since it has answered before."""
    monkeypatch.setattr(client_attempts, "STRANGER_S", 0.0)
    router = Router()
    with nobody() as target:
        pass
    async with AsyncClient(target) as client:
        async with serving(router, target):
            await client.tokenize("abc")
        asking = asyncio.create_task(client.generate("x"))
        await asyncio.sleep(0.3)
        assert not asking.done()
        async with serving(router, target):
            assert (await asking).outputs[0].text == "one two three "


async def test_a_router_that_stays_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_attempts, "FIRST_BACKOFF_S", 0.0)
    router = Router(Code.UNAVAILABLE)
    router.num_failures = 1000
    async with dialled(router, max_retries=4) as client:
        with pytest.raises(Unavailable, match="not now"):
            await client.tokenize("abc")
    assert router.num_calls == 5


async def test_a_whole_answer_has_everything_and_a_stream_adds_up_to_it() -> None:
    router = Router()
    async with dialled(router, api_key="k") as client:
        output = await client.generate([5, 6], SamplingParams(seed=1), priority=-2, cache_salt="s")
        chunks = [chunk async for chunk in client.stream([{"role": "user", "content": "hi"}])]
    [sample] = output.outputs
    assert (sample.text, sample.token_ids, sample.finish_reason) == (
        "one two three ",
        [0, 1, 2],
        "stop",
    )
    assert (output.prompt, output.prompt_token_ids, output.num_prompt_tokens) == (None, [5, 6], 7)
    assert "".join(chunk.text for chunk in chunks) == sample.text
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.num_output_tokens == 3
    whole, streamed = router.requests
    assert (whole.whole, whole.priority, whole.cache_salt) == (True, -2, "s")
    assert not streamed.whole
    assert streamed.chat.messages[0].content == "hi"


async def test_leaving_a_stream_ends_the_request() -> None:
    router = Router()
    router.hangs_after = 1
    async with dialled(router) as client:
        async with client.stream("x") as stream:
            assert (await anext(stream)).text == "one "
        async with asyncio.timeout(10):
            await router.cancelled.wait()


async def test_a_stream_is_cancelled_while_somebody_reads_it() -> None:
    router = Router()
    router.hangs_after = 1
    async with dialled(router) as client:
        stream = client.stream("x")
        got = asyncio.Event()

        async def read() -> list[str]:
            texts = []
            async for chunk in stream:
                texts.append(chunk.text)
                got.set()
            return texts

        reading = asyncio.create_task(read())
        await got.wait()
        await stream.cancel()
        async with asyncio.timeout(10):
            assert await reading == ["one "]
            await router.cancelled.wait()
        assert [chunk async for chunk in stream] == []


async def test_cancelling_a_task_that_generates_ends_the_request() -> None:
    router = Router()
    router.hangs_after = 0
    async with dialled(router) as client:
        task = asyncio.create_task(client.generate("x"))
        await router.called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            await router.cancelled.wait()


async def test_a_deadline_ends_the_request_and_is_the_routers_too() -> None:
    router = Router()
    router.hangs_after = 1
    async with dialled(router, timeout=30.0) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("x", timeout=0.5)
        async with asyncio.timeout(10):
            await router.cancelled.wait()
        router.hangs_after = None
        await client.generate("x")
    [short_s, usual_s] = router.timeouts_s
    assert short_s is not None
    assert short_s < 5
    assert usual_s is not None
    assert 5 < usual_s < 35


async def test_attempts_share_one_deadline() -> None:
    router = Router(Code.UNAVAILABLE, (("grpc-retry-pushback-ms", "100"),))
    router.num_failures = 1000
    async with dialled(router) as client:
        began = time.monotonic()
        with pytest.raises(RequestFailed):
            await client.generate("x", timeout=0.5)
        assert time.monotonic() - began < 10
    assert 1 < router.num_calls <= 6


def test_retries_are_not_negative() -> None:
    with pytest.raises(ValueError, match="max_retries is -1; it must be at least 0"):
        Client("127.0.0.1:1", max_retries=-1)


@contextmanager
def served_in_a_thread(router: Router) -> Iterator[str]:
    """For callers that block."""
    address: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(router) as where:
            address.append(where)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_the_blocking_client_does_the_same() -> None:
    router = Router()
    with served_in_a_thread(router) as address:
        with Client(address, timeout=60) as client:
            assert client.tokenize("abc") == [3]
            assert client.generate("x").outputs[0].text == "one two three "
            assert [chunk.text for chunk in client.stream("x")] == ["one ", "two ", "three "]
            router.hangs_after = 1
            with client.stream("x") as stream:
                assert next(stream).text == "one "
            deadline = time.monotonic() + 10
            while not router.cancelled.is_set() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert router.cancelled.is_set()
            with pytest.raises(DeadlineExceeded):
                client.generate("x", timeout=0.2)
        client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "quire client"]


def test_closing_a_client_ends_what_another_thread_waits_for() -> None:
    router = Router()
    router.hangs_after = 0
    with served_in_a_thread(router) as address:
        client = Client(address)
        ends: list[RequestFailed] = []

        def wait() -> None:
            try:
                client.generate("x")
            except Cancelled as error:
                ends.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not router.num_calls:
            time.sleep(0.01)
        client.close()
        waiting.join(timeout=10)
        assert not waiting.is_alive()
    assert len(ends) == 1
