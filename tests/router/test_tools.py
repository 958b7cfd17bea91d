"""Thoughts and calls of tools in every dialect, by the official clients, streamed and not."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic.types import ToolParam
from openai.types.chat import ChatCompletionFunctionToolParam
from openai.types.responses import FunctionToolParam

from router.server import Router
from tests import openai_spec
from tests.openai_spec import check, events
from tests.router.conftest import StartRouter
from tests.router.fake_scheduler import FakeScheduler

TEMPLATE = Path(__file__).parents[1] / "gateway" / "templates" / "hermes.jinja"
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}
ARGUMENTS = {"city": "東京 🙂"}
SAID = (
    "<think>\nhm 🙂\n</think>\n\nI ask."
    f"<tool_call>\n{json.dumps({'name': 'weather', 'arguments': ARGUMENTS})}\n</tool_call>"
    "<|im_end|>"
)
CHAT_TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": SCHEMA},
}
RESPONSE_TOOL: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "parameters": SCHEMA,
    "strict": None,
}
ANTHROPIC_TOOL: ToolParam = {"name": "weather", "input_schema": SCHEMA}


@pytest.fixture
async def thinker(start_router: StartRouter, scheduler: FakeScheduler) -> AsyncIterator[Router]:
    """A router before a model that thinks, says something and calls."""
    scheduler.max_model_len = 4096
    async with start_router(chat_template=TEMPLATE) as router:
        scheduler.says = router.backend.model.tokenizer.encode(SAID, add_special_tokens=False)
        yield router


@pytest.fixture
async def client(thinker: Router) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{thinker.address}/v1", api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


@pytest.fixture
async def claude(thinker: Router) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=thinker.address, api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


@pytest.fixture
async def http(thinker: Router) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=thinker.address, timeout=20) as client:
        yield client


async def test_messages(claude: anthropic.AsyncAnthropic) -> None:
    asked: Any = {
        "model": "tiny",
        "max_tokens": 900,
        "messages": [{"role": "user", "content": "?"}],
        "tools": [ANTHROPIC_TOOL],
    }
    whole = await claude.messages.create(**asked)
    thinking, text, call = whole.content
    assert (thinking.type, getattr(thinking, "thinking", "").strip()) == ("thinking", "hm 🙂")
    assert (text.type, getattr(text, "text", None)) == ("text", "I ask.")
    assert call.type == "tool_use"
    assert (call.name, call.input, whole.stop_reason) == ("weather", ARGUMENTS, "tool_use")
    async with claude.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert [block.type for block in streamed.content] == ["thinking", "text", "tool_use"]
    assert getattr(streamed.content[2], "input", None) == ARGUMENTS
    assert (streamed.stop_reason, streamed.usage) == (whole.stop_reason, whole.usage)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    said = [block.model_dump(exclude_none=True) for block in whole.content]
    asked["messages"] += [
        {"role": "assistant", "content": said},
        {"role": "user", "content": [result]},
    ]
    assert (await claude.messages.create(**asked)).content


async def test_responses(client: openai.AsyncOpenAI, scheduler: FakeScheduler) -> None:
    whole = await client.responses.create(model="tiny", input="?", tools=[RESPONSE_TOOL])
    reasoning, message, call = whole.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert reasoning.content[0].text.strip() == "hm 🙂"
    assert (message.type, whole.output_text) == ("message", "I ask.")
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", ARGUMENTS)
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    async with client.responses.stream(model="tiny", input="?", tools=[RESPONSE_TOOL]) as stream:
        kinds = {event.type async for event in stream}
        streamed = await stream.get_final_response()
    assert {"response.reasoning_text.delta", "response.function_call_arguments.done"} <= kinds
    assert [item.type for item in streamed.output] == ["reasoning", "message", "function_call"]
    await client.responses.create(
        model="tiny",
        previous_response_id=whole.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
        tools=[RESPONSE_TOOL],
    )
    assert len(scheduler.submits) == 3


async def test_chat_completions(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "?"}], tools=[CHAT_TOOL]
    )
    [choice] = whole.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == ARGUMENTS
    async with client.chat.completions.stream(
        model="tiny", messages=[{"role": "user", "content": "?"}], tools=[CHAT_TOOL]
    ) as stream:
        streamed = (await stream.get_final_completion()).choices[0].message
    assert streamed.content == choice.message.content
    assert streamed.tool_calls is not None
    assert streamed.tool_calls[0].function.arguments == call.function.arguments


@openai_spec.needs_spec
@pytest.mark.parametrize("said", [{}, {"max_tokens": 30}, {"n": 2}], ids=str)
async def test_chats_are_valid_by_openais_specification(
    http: httpx.AsyncClient, said: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [CHAT_TOOL], **said}
    whole = await http.post("/v1/chat/completions", json=body)
    assert whole.status_code == 200
    check(whole.json(), "CreateChatCompletionResponse")
    stream = await http.post("/v1/chat/completions", json=body | {"stream": True})
    *chunks, _ = events(stream.text)
    for _, chunk in chunks:
        check(chunk, "CreateChatCompletionStreamResponse")


@openai_spec.needs_spec
@pytest.mark.parametrize("limit", [None, 10, 45, 90])
async def test_responses_are_valid_by_openais_specification(
    http: httpx.AsyncClient, limit: int | None
) -> None:
    """Wherever the length cuts: in thoughts, in a call."""
    body = {"input": "?", "tools": [RESPONSE_TOOL], "max_output_tokens": limit}
    whole = await http.post("/v1/responses", json=body)
    assert whole.status_code == 200
    check(whole.json(), "Response")
    stream = await http.post("/v1/responses", json=body | {"stream": True})
    told = [event for _, event in events(stream.text)]
    for event in told:
        check(event, "ResponseStreamEvent")
    kinds = [item["type"] for item in told[-1]["response"]["output"]]
    assert kinds == [item["type"] for item in whole.json()["output"]]
