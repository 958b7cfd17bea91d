"""`InferenceService`, health and reflection over gRPC, as other languages' clients use them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.quire.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2, scheduler_pb2
from router import body, generation, known_cell, service
from router.server import Router
from router.service import SERVICE
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler


@pytest.fixture
async def channel(router: Router) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(router.grpc_address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> inference_pb2_grpc.InferenceServiceStub:
    return inference_pb2_grpc.InferenceServiceStub(channel)


Stub = inference_pb2_grpc.InferenceServiceStub


def request(**sampling: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        text="xyz", sampling=inference_pb2.SamplingOptions(**sampling)
    )


async def test_text_is_continued(stub: Stub) -> None:
    pieces = [piece async for piece in stub.Generate(request(max_tokens=6, n=2, num_logprobs=1))]
    for index in range(2):
        mine = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in mine) == "xyzxyz"
        assert sum(len(piece.token_ids) for piece in mine) == 6
        logprobs = [np.frombuffer(piece.logprobs.logprob, "<f4") for piece in mine]
        assert np.concatenate(logprobs).tolist() == [-1, -2, -3, -4, -5, -6]
        last = mine[-1]
        assert last.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
        assert last.usage == inference_pb2.Usage(
            num_prompt_tokens=3, num_output_tokens=6, num_cached_tokens=2
        )


async def test_chats_and_tokens_are_prompts_too(stub: Stub) -> None:
    message = inference_pb2.ChatMessage(role="user", content="hello")
    chat = inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt(messages=[message]))
    pieces = [piece async for piece in stub.Generate(chat)]
    assert "".join(piece.text for piece in pieces) == "user\nhello"
    assert pieces[-1].finish_reason == sampling_pb2.FINISH_REASON_STOP
    tokens = inference_pb2.GenerateRequest(
        tokens=inference_pb2.TokenIds(ids=[10, 11]),
        sampling=inference_pb2.SamplingOptions(max_tokens=3),
    )
    ids = [token async for piece in stub.Generate(tokens) for token in piece.token_ids]
    assert ids == [10, 11, 10]


@pytest.mark.parametrize(("stop", "coalesced"), [([], 256), ([], 50), (["nowhere"], 256)])
async def test_a_sample_may_come_whole(
    stub: Stub, stop: list[str], coalesced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "COALESCED_TOKENS", coalesced)
    whole = request(max_tokens=240, n=2, num_logprobs=1, stop=stop)
    whole.whole = True
    pieces = [piece async for piece in stub.Generate(whole)]
    assert sorted(piece.index for piece in pieces) == [0, 1]
    for piece in pieces:
        assert piece.text == "xyz" * 80
        assert len(piece.token_ids) == piece.usage.num_output_tokens == 240
        logprobs = np.frombuffer(piece.logprobs.logprob, "<f4")
        assert logprobs.tolist() == [-1.0 - i for i in range(240)]
        assert piece.finish_reason == sampling_pb2.FINISH_REASON_LENGTH


async def test_a_whole_sample_ends_at_its_stop_string(stub: Stub, scheduler: FakeScheduler) -> None:
    whole = request(max_tokens=99, stop=["zx"])
    whole.whole = True
    [piece] = [piece async for piece in stub.Generate(whole)]
    assert (piece.text, piece.usage.num_output_tokens) == ("xy", 4)
    assert [tokens for _, tokens in scheduler.finishes] == [4]


async def test_a_stop_string_ends_it(stub: Stub, scheduler: FakeScheduler) -> None:
    pieces = [piece async for piece in stub.Generate(request(max_tokens=99, stop=["zx"]))]
    assert "".join(piece.text for piece in pieces) == "xy"
    assert pieces[-1].usage.num_output_tokens == 4
    assert [tokens for _, tokens in scheduler.finishes] == [4]


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (request(n=0), "INVALID_ARGUMENT", "n is 0; it must be at least 1"),
        (request(temperature=2.5), "INVALID_ARGUMENT", "temperature is 2.5; it must be at most 2"),
        (request(temperature=float("nan")), "INVALID_ARGUMENT", "temperature is nan;"),
        (request(max_tokens=999), "INVALID_ARGUMENT", "max_tokens is 999 and the prompt has 3"),
        (inference_pb2.GenerateRequest(), "INVALID_ARGUMENT", "prompt is missing"),
        (
            inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt()),
            "INVALID_ARGUMENT",
            "chat.messages has 0 entries",
        ),
        (
            inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[2**32 - 1])),
            "INVALID_ARGUMENT",
            "prompt has 4294967295; token ids of this model are 0 to 399",
        ),
        (inference_pb2.GenerateRequest(text="a", model="b"), "NOT_FOUND", 'model "b" does not'),
    ],
)
async def test_bad_input(
    stub: Stub, wrong: inference_pb2.GenerateRequest, code: str, message: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [piece async for piece in stub.Generate(wrong)]
    assert caught.value.code().name == code
    assert (caught.value.details() or "").startswith(message)


async def test_no_worker_is_unavailable(
    stub: Stub, scheduler: FakeScheduler, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_cell, "HOLD_S", 0.0)  # nobody is expected back
    scheduler.replica_ids = []
    scheduler.tell_status()
    await until(lambda: not router.backend.readiness.is_ready())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [piece async for piece in stub.Generate(request())]
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_cancelling_aborts(stub: Stub, scheduler: FakeScheduler, router: Router) -> None:
    scheduler.hold_at = 3
    call = stub.Generate(request(max_tokens=50))
    assert (await call.read()).text
    call.cancel()
    await until(lambda: scheduler.aborted == [scheduler.submits[0].sequence_id])
    await until(lambda: router.backend.permits.num_taken == 0)


async def test_a_client_that_does_not_read_is_ended(
    scheduler: FakeScheduler, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is alive and answers pings, but takes nothing: its window stays full."""
    monkeypatch.setattr(service, "SEND_S", 0.1)
    monkeypatch.setattr(service, "STATUS_S", 0.1)
    scheduler.max_model_len = 10_000_000
    scheduler.tell_status()
    await until(lambda: router.backend.engine.cell.max_model_len == 10_000_000)
    small_window = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535))
    async with grpc.aio.insecure_channel(router.grpc_address, options=small_window) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(request(max_tokens=1_000_000, n=128, num_logprobs=20))
        await until(lambda: len(scheduler.aborted) == 128)
        await until(lambda: router.backend.permits.num_taken == 0)
        with pytest.raises(grpc.aio.AioRpcError, match="stopped reading") as caught:
            _ = [piece async for piece in call]
        assert caught.value.code() == grpc.StatusCode.ABORTED


async def test_only_an_error_worth_a_retry_says_when(stub: Stub, scheduler: FakeScheduler) -> None:
    async def trailers() -> dict[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [piece async for piece in stub.Generate(request())]
        return dict(caught.value.trailing_metadata() or ())

    scheduler.refusal = scheduler_pb2.Refusal(code=scheduler_pb2.REFUSAL_CODE_OVERLOADED)
    assert (await trailers())[service.RETRY_TRAILER] == "1000"
    scheduler.refusal = scheduler_pb2.Refusal(code=scheduler_pb2.REFUSAL_CODE_INVALID)
    assert service.RETRY_TRAILER not in await trailers()


async def test_tokens_and_text_need_a_permit(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 1
    async with (
        start_router(max_in_flight=1) as router,
        grpc.aio.insecure_channel(router.grpc_address) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        running = stub.Generate(request())
        await until(lambda: len(scheduler.submits) == 1)
        for call in (
            stub.Tokenize(inference_pb2.TokenizeRequest(text="x")),
            stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[10])),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        running.cancel()


async def test_text_and_tokens(stub: Stub) -> None:
    text = "naïve <|im_end|> 🙂"
    tokens = await stub.Tokenize(inference_pb2.TokenizeRequest(text=text))
    assert 2 in tokens.token_ids
    back = await stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=tokens.token_ids))
    assert back.text == text
    with pytest.raises(grpc.aio.AioRpcError, match="token_ids has 400"):
        await stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[400]))


async def test_models_are_listed(stub: Stub) -> None:
    listed = await stub.ListModels(inference_pb2.ListModelsRequest())
    assert [(model.name, model.max_model_len) for model in listed.models] == [("tiny", 256)]


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([asked]))]
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {SERVICE, "grpc.health.v1.Health"}


async def test_health_follows_readiness(
    channel: grpc.aio.Channel, router: Router, scheduler: FakeScheduler
) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    asked = health_pb2.HealthCheckRequest(service=SERVICE)
    assert (await stub.Check(asked)).status == serving
    scheduler.replica_ids = []
    scheduler.tell_status()
    await until(lambda: not router.backend.readiness.is_ready())
    assert (await stub.Check(asked)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == serving
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_the_api_key_guards_grpc_too(start_router: StartRouter) -> None:
    async with (
        start_router(api_key="secret") as router,
        grpc.aio.insecure_channel(router.grpc_address) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        asked = inference_pb2.ListModelsRequest()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(asked)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        key = (("authorization", "Bearer secret"),)
        assert (await stub.ListModels(asked, metadata=key)).models
        assert await asyncio.wait_for(
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()), 20
        )


async def test_large_requests_have_one_room(
    start_router: StartRouter, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC keeps each to the end of its call."""
    monkeypatch.setattr(body, "ROOM_BYTES", 4 * body.OWN_BYTES)
    scheduler.max_model_len = 10_000_000
    scheduler.hold_at = 1
    async with (
        start_router(max_body_bytes=4 * body.OWN_BYTES) as router,
        grpc.aio.insecure_channel(router.grpc_address) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        large = request()
        large.text = "x" * (3 * body.OWN_BYTES)
        running = stub.Generate(large)
        await until(lambda: len(scheduler.submits) == 1)
        with pytest.raises(grpc.aio.AioRpcError, match="bodies that are here hold") as caught:
            _ = [piece async for piece in stub.Generate(large)]
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        small = stub.Generate(request())
        await until(lambda: len(scheduler.submits) == 2)
        running.cancel()
        small.cancel()
        await until(lambda: router.backend.room.num_held == 0)


async def test_not_too_many_watch(
    router: Router, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_WATCHERS", 2)
    stub = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service=service.SERVICE)
    watching = [stub.Watch(asked) for _ in range(2)]
    for watch in watching:
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError, match="2 calls watch already") as caught:
        _ = [said async for said in stub.Watch(asked)]
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    watching[0].cancel()

    async def is_let_in() -> bool:
        try:
            return bool(await stub.Watch(asked).read())
        except grpc.aio.AioRpcError:
            return False

    async with asyncio.timeout(20):
        while not await is_let_in():  # noqa: ASYNC110 - it hears of the end in its own time
            await asyncio.sleep(0.01)
