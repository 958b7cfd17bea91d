"""Conversations with tools and thoughts, prompts' logprobs, and errors for programs, over gRPC."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from gateway.model import Model
from protos.quire.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2, scheduler_pb2
from router import service
from router.server import Router
from tests.gateway import tiny_model
from tests.router.conftest import StartRouter
from tests.router.fake_scheduler import FakeScheduler
from tests.router.test_tools import SAID, TEMPLATE

Stub = inference_pb2_grpc.InferenceServiceStub
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = inference_pb2.Tool(name="weather", parameters=json.dumps(SCHEMA))
USER = inference_pb2.ChatMessage(role="user", content="?")


@pytest.fixture
async def router(start_router: StartRouter, scheduler: FakeScheduler) -> AsyncIterator[Router]:
    """Before a model that thinks and calls."""
    scheduler.max_model_len = 4096
    async with start_router(chat_template=TEMPLATE) as router:
        yield router


@pytest.fixture
async def stub(router: Router) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(router.grpc_address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def chat(**fields: Any) -> inference_pb2.GenerateRequest:
    fields.setdefault("messages", [USER])
    return inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt(**fields))


async def pieces_of(
    stub: Stub, request: inference_pb2.GenerateRequest
) -> list[inference_pb2.GenerateResponse]:
    return [piece async for piece in stub.Generate(request)]


async def failure(stub: Stub, request: inference_pb2.GenerateRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pieces_of(stub, request)
    return caught.value


def detail_of(error: grpc.aio.AioRpcError) -> inference_pb2.ErrorDetail:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers[service.DETAILS_TRAILER])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    detail = inference_pb2.ErrorDetail()
    assert status.details[0].Unpack(detail)
    return detail


@pytest.mark.parametrize("whole", [False, True])
async def test_text_thoughts_and_calls_come_apart(
    stub: Stub, router: Router, scheduler: FakeScheduler, whole: bool
) -> None:
    tokenizer = router.backend.model.tokenizer
    scheduler.says = tokenizer.encode(SAID, add_special_tokens=False)
    request = chat(tools=[TOOL])
    request.whole = whole
    request.sampling.n = 2
    pieces = await pieces_of(stub, request)
    assert whole is (len(pieces) == 2)
    for index in range(2):
        own = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.reasoning for piece in own) == "hm 🙂"
        assert "".join(piece.text for piece in own) == "I ask."
        assert [token for piece in own for token in piece.token_ids] == scheduler.says
        calls = [call for piece in own for call in piece.tool_calls]
        assert calls[0].id
        assert (calls[0].name, {call.index for call in calls}) == ("weather", {0})
        assert not any(call.id or call.name for call in calls[1:])
        assert json.loads("".join(call.arguments for call in calls)) == {"city": "東京 🙂"}
        assert own[-1].finish_reason == sampling_pb2.FINISH_REASON_STOP


@pytest.mark.parametrize("whole", [False, True])
async def test_what_only_looked_like_a_call_is_text(
    stub: Stub, router: Router, scheduler: FakeScheduler, whole: bool
) -> None:
    """It is held back until the sample has ended."""
    tokenizer = router.backend.model.tokenizer
    scheduler.says = tokenizer.encode("1 <tool_c<|im_end|>", add_special_tokens=False)
    request = chat(tools=[TOOL])
    request.whole = whole
    pieces = await pieces_of(stub, request)
    assert "".join(piece.text for piece in pieces) == "1 <tool_c"
    assert not any(piece.tool_calls for piece in pieces)


async def test_marks_that_are_special_tokens_are_read_all_the_same(
    start_router: StartRouter, scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """As those of Mistral are."""
    directory = tiny_model.build(tmp_path / "model")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    content = json.dumps(tokenizer).replace("<|endoftext|>", "[TOOL_CALLS]")
    (directory / "tokenizer.json").write_text(content)
    scheduler.max_model_len = 4096
    template = TEMPLATE.parent / "mistral.jinja"
    async with (
        start_router(model=directory, served_model_name="tiny", chat_template=template) as router,
        grpc.aio.insecure_channel(router.grpc_address) as channel,
    ):
        said = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]<|im_end|>'
        encode = router.backend.model.tokenizer.encode
        scheduler.says = encode(said, add_special_tokens=False)
        pieces = await pieces_of(
            inference_pb2_grpc.InferenceServiceStub(channel), chat(tools=[TOOL])
        )
    assert "".join(piece.text for piece in pieces) == ""
    calls = [call for piece in pieces for call in piece.tool_calls]
    assert calls[0].name == "weather"
    assert json.loads("".join(call.arguments for call in calls)) == {"city": "Rome"}


async def test_calls_and_their_results_are_told_to_the_model(
    stub: Stub, router: Router, scheduler: FakeScheduler
) -> None:
    call = inference_pb2.ToolCall(id="c1", name="weather", arguments='{"city": "Rome"}')
    messages = [
        inference_pb2.ChatMessage(role="developer", content="Be kind."),
        USER,
        inference_pb2.ChatMessage(role="assistant", tool_calls=[call]),
        inference_pb2.ChatMessage(role="tool", tool_call_id="c1", content="sunny"),
    ]
    await pieces_of(stub, chat(messages=messages, tools=[TOOL]))
    tokenizer = router.backend.model.tokenizer
    tokens = np.frombuffer(scheduler.submits[0].token_id, "<i4").tolist()
    prompt = tokenizer.decode(tokens, skip_special_tokens=False)
    assert "Be kind." in prompt
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in prompt
    assert "sunny" in prompt
    assert '"description"' in prompt or '"parameters"' in prompt


@pytest.mark.parametrize("mode", ["REQUIRED", "NAMED"])
async def test_a_call_that_must_come_is_a_grammar(
    stub: Stub, scheduler: FakeScheduler, mode: str
) -> None:
    name = "weather" if mode == "NAMED" else ""
    choice = inference_pb2.ToolChoice(mode=f"TOOL_CHOICE_MODE_{mode}", name=name)
    await pieces_of(stub, chat(tools=[TOOL], tool_choice=choice))
    await pieces_of(stub, chat(tools=[TOOL]))
    strict = inference_pb2.Tool(name="forecast", parameters=json.dumps(SCHEMA), strict=True)
    await pieces_of(stub, chat(tools=[strict]))
    required, free, held = (submit.sampling.grammar for submit in scheduler.submits)
    assert "weather" in required
    assert not free
    assert "forecast" in held


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "chat.messages": ({"messages": []}, "chat.messages has 0 entries; it must have at least 1"),
    "chat.messages[0].role": (
        {"messages": [inference_pb2.ChatMessage(role="robot")]},
        'chat.messages[0].role is "robot"; it must be one of ["developer", "system", "user", '
        '"assistant", "tool"]',
    ),
    "chat.messages[0].tool_call_id": (
        {"messages": [inference_pb2.ChatMessage(role="tool", content="x")]},
        "chat.messages[0].tool_call_id is missing",
    ),
    "chat.messages[1].tool_call_id": (
        {
            "messages": [
                USER,
                inference_pb2.ChatMessage(role="tool", content="x", tool_call_id="c9"),
            ]
        },
        'chat.messages[1].tool_call_id is "c9"; no call before it has that id',
    ),
    "chat.messages[0].reasoning": (
        {"messages": [inference_pb2.ChatMessage(role="user", reasoning="x")]},
        "chat.messages[0].reasoning is there; only a message of role assistant has it",
    ),
    "chat.messages[0].tool_calls[0].id": (
        {
            "messages": [
                inference_pb2.ChatMessage(
                    role="assistant", tool_calls=[inference_pb2.ToolCall(name="x")]
                )
            ]
        },
        "chat.messages[0].tool_calls[0].id is missing",
    ),
    "chat.tools[0].parameters": (
        {"tools": [inference_pb2.Tool(name="x", parameters="[")]},
        'chat.tools[0].parameters is "["; it must be JSON',
    ),
    "chat.tool_choice.mode": (
        {"tool_choice": inference_pb2.ToolChoice(mode=9)},  # type: ignore[arg-type]
        "chat.tool_choice.mode is 9; it must be one of [0, 1, 2, 3, 4]",
    ),
    "chat.tool_choice.name": (
        {"tool_choice": inference_pb2.ToolChoice(mode=inference_pb2.TOOL_CHOICE_MODE_NAMED)},
        'chat.tool_choice.name is ""; mode NAMED has the name of a tool, and no other mode has one',
    ),
    "chat.chat_template_kwargs": (
        {"chat_template_kwargs": "[1]"},
        "chat.chat_template_kwargs is [1]; it must be a JSON object",
    ),
    "chat.continue_final_message": (
        {"continue_final_message": True, "add_generation_prompt": True},
        "chat.continue_final_message is true and chat.add_generation_prompt is true; "
        "an answer can do only one of the two",
    ),
}


@pytest.mark.parametrize("field", WRONG)
async def test_what_is_wrong_with_a_conversation_is_named(stub: Stub, field: str) -> None:
    fields, message = WRONG[field]
    error = await failure(stub, chat(**fields))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, message)
    assert detail_of(error) == inference_pb2.ErrorDetail(
        code=inference_pb2.ERROR_CODE_INVALID_REQUEST, field=field
    )


async def test_errors_tell_programs_what_to_do(stub: Stub, scheduler: FakeScheduler) -> None:
    request = inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[1] * 5000))
    assert detail_of(await failure(stub, request)) == inference_pb2.ErrorDetail(
        code=inference_pb2.ERROR_CODE_CONTEXT_LENGTH_EXCEEDED, field="tokens"
    )
    request = inference_pb2.GenerateRequest(text="x", model="gpt")
    assert detail_of(await failure(stub, request)) == inference_pb2.ErrorDetail(
        code=inference_pb2.ERROR_CODE_MODEL_NOT_FOUND, field="model"
    )
    scheduler.refusal = scheduler_pb2.Refusal(code=scheduler_pb2.REFUSAL_CODE_OVERLOADED)
    request = inference_pb2.GenerateRequest(text="x")
    assert detail_of(await failure(stub, request)) == inference_pb2.ErrorDetail(
        code=inference_pb2.ERROR_CODE_RATE_LIMIT_EXCEEDED, retryable=True, retry_after_ms=1000
    )


async def test_a_defect_tells_nothing_internal(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Model, name: str | None) -> None:
        raise KeyError("/root/secret")

    monkeypatch.setattr(Model, "check_name", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(inference_pb2.TokenizeRequest(text="x"))
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.INTERNAL,
        "the server failed",
    )
    assert detail_of(caught.value).code == inference_pb2.ERROR_CODE_INTERNAL_ERROR
    assert "/root/secret" in caplog.text


@pytest.mark.parametrize("max_tokens", [0, 2])
@pytest.mark.parametrize("whole", [False, True])
async def test_a_prompt_is_scored(
    stub: Stub, scheduler: FakeScheduler, max_tokens: int, whole: bool
) -> None:
    request = inference_pb2.GenerateRequest(
        tokens=inference_pb2.TokenIds(ids=[10, 11, 12, 13]),
        sampling=inference_pb2.SamplingOptions(
            num_prompt_logprobs=2, max_tokens=max_tokens, n=2, num_logprobs=0
        ),
        whole=whole,
        return_prompt_token_ids=True,
    )
    pieces = await pieces_of(stub, request)
    [scored] = [piece for piece in pieces if piece.HasField("prompt_logprobs")]
    assert scored.index == 0
    assert list(scored.prompt_token_ids) == [10, 11, 12, 13]
    columns = scored.prompt_logprobs
    num_top = np.frombuffer(columns.num_top, "<i4")
    assert len(np.frombuffer(columns.logprob, "<f4")) == len(num_top) == 3
    assert len(np.frombuffer(columns.rank, "<i4")) == 3
    assert len(np.frombuffer(columns.top_token_id, "<i4")) == num_top.sum()
    assert len(np.frombuffer(columns.top_logprob, "<f4")) == num_top.sum()
    for index in range(2):
        own = [piece for piece in pieces if piece.index == index]
        said = [token for piece in own for token in piece.token_ids]
        assert said == [10, 11][:max_tokens]
        assert bool("".join(piece.text for piece in own)) is bool(max_tokens)
        assert bool(own[0].logprobs.logprob) is bool(max_tokens)
        assert own[-1].finish_reason == sampling_pb2.FINISH_REASON_LENGTH
        assert own[-1].usage.num_output_tokens == max_tokens


async def test_nothing_to_say_needs_something_to_score(stub: Stub) -> None:
    request = inference_pb2.GenerateRequest(text="x")
    request.sampling.max_tokens = 0
    error = await failure(stub, request)
    assert error.details() == "max_tokens is 0; it must be at least 1"


async def test_what_stopped_it_is_told_and_shown_if_wanted(stub: Stub) -> None:
    request = inference_pb2.GenerateRequest(text="xyz")
    request.sampling.stop.append("zx")
    pieces = await pieces_of(stub, request)
    assert "".join(piece.text for piece in pieces) == "xy"
    assert pieces[-1].stop_text == "zx"
    request.sampling.include_stop_str_in_output = True
    pieces = await pieces_of(stub, request)
    assert "".join(piece.text for piece in pieces) == "xyzx"
    request = inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[10, 11]))
    request.sampling.stop_token_ids.append(11)
    pieces = await pieces_of(stub, request)
    assert pieces[-1].stop_token_id == 11


async def test_special_tokens_are_shown_and_prompts_truncated_if_wanted(stub: Stub) -> None:
    request = inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[10, 1, 11]))
    request.sampling.max_tokens = 3
    hidden = "".join(piece.text for piece in await pieces_of(stub, request))
    request.sampling.skip_special_tokens = False
    shown = "".join(piece.text for piece in await pieces_of(stub, request))
    assert "<|im_start|>" in shown
    assert shown.replace("<|im_start|>", "") == hidden
    request.tokens.ids.extend([12] * 5000)
    request.sampling.truncate_prompt_tokens = 7
    pieces = await pieces_of(stub, request)
    assert pieces[-1].usage.num_prompt_tokens == 7
    request = chat(messages=[inference_pb2.ChatMessage(role="user", content="x " * 50_000)])
    request.sampling.max_tokens = 3
    request.sampling.truncate_prompt_tokens = -1
    pieces = await pieces_of(stub, request)
    assert pieces[-1].usage.num_prompt_tokens == 4096 - 3
