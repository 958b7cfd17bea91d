"""OpenAI's Responses and Anthropic's Messages, by their own packages, before the real model."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve

MODEL = "smollm2"
TEMPLATE = Path(__file__).parents[1] / "gateway" / "templates" / "hermes.jinja"
QUESTION = "What is the capital of France?"
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
GREEDY = {"temperature": 0}
"""The package has no such parameter any more."""


class City(BaseModel):
    """What an answer is asked to be."""

    name: str
    is_capital: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime_dir = tmp_path_factory.mktemp("run")
    flags = ("--max-model-len", "1024", "--chat-template", str(TEMPLATE))
    with serve(MODEL, runtime_dir, *flags) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_responses_streamed_and_not_say_the_same(client: openai.OpenAI) -> None:
    whole = client.responses.create(
        model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0
    )
    assert "Paris" in whole.output_text
    with client.responses.stream(
        model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        streamed = stream.get_final_response()
    assert len(deltas) > 1
    assert ("".join(deltas), streamed.output_text) == (whole.output_text, whole.output_text)
    assert streamed.status == whole.status


def test_a_response_goes_on_from_another(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model=MODEL, input="My name is Ada.", max_output_tokens=16, temperature=0
    )
    second = client.responses.create(
        model=MODEL,
        input="Say my name.",
        previous_response_id=first.id,
        max_output_tokens=16,
        temperature=0,
    )
    by_items = client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "Say my name."},
        ],
        max_output_tokens=16,
        temperature=0,
        store=False,
    )
    assert second.output_text == by_items.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="is not here"):
        client.responses.retrieve(first.id)


def test_a_response_in_the_background(client: openai.OpenAI) -> None:
    """Polled, followed by another connection, and cancelled."""
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0}
    plain = client.responses.create(**asked, max_output_tokens=24)
    queued = client.responses.create(**asked, max_output_tokens=24, background=True)
    assert queued.status in ("queued", "in_progress")
    while (polled := client.responses.retrieve(queued.id)).status in ("queued", "in_progress"):
        time.sleep(0.05)
    assert (polled.status, polled.output_text) == (plain.status, plain.output_text)
    with client.responses.create(
        **asked, max_output_tokens=24, background=True, stream=True
    ) as stream:
        first = next(iter(stream))
    assert first.type == "response.created"
    with client.responses.retrieve(first.response.id, stream=True, starting_after=1) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(2, 2 + len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == plain.output_text
    long = client.responses.create(**asked, max_output_tokens=900, background=True)
    assert client.responses.cancel(long.id).status == "cancelled"
    [item] = client.responses.input_items.list(long.id).data
    assert getattr(item, "content", [None])[0].text == QUESTION


def test_the_logprobs_of_a_response_are_those_of_a_chat(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        input=QUESTION,
        max_output_tokens=5,
        temperature=0,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    [message] = response.output
    assert message.type == "message"
    said = getattr(message.content[0], "logprobs", None)
    assert chat.choices[0].logprobs is not None
    expected = chat.choices[0].logprobs.content
    assert said is not None
    assert expected is not None
    assert [entry.token for entry in said] == [entry.token for entry in expected]
    for ours, theirs in zip(said, expected, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [top.token for top in ours.top_logprobs] == [t.token for t in theirs.top_logprobs]


def test_a_response_is_parsed(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL,
        input="Describe Paris as JSON.",
        text_format=City,
        max_output_tokens=120,
        temperature=0,
    )
    assert response.status == "completed"
    assert isinstance(response.output_parsed, City)


def test_the_tools_loop_of_responses(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "tools": [
            {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True},
        ],
        "max_output_tokens": 96,
        "temperature": 0,
    }
    first = client.responses.create(
        **asked, input="How is the weather in Paris?", tool_choice="required"
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls
    assert isinstance(json.loads(calls[0].arguments)["city"], str)
    with client.responses.stream(
        **asked, input="How is the weather in Paris?", tool_choice="required"
    ) as stream:
        streamed = stream.get_final_response()
    assert [getattr(item, "arguments", None) for item in streamed.output] == [
        getattr(item, "arguments", None) for item in first.output
    ]
    second = client.responses.create(
        **asked,
        previous_response_id=first.id,
        input=[
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
            for call in calls
        ],
        tool_choice="none",
    )
    assert second.output_text


def test_messages_streamed_and_not_say_the_same(claude: anthropic.Anthropic) -> None:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 24,
        "extra_body": GREEDY,
        "system": "Answer in one sentence.",
        "messages": [{"role": "user", "content": QUESTION}],
    }
    whole = claude.messages.create(**asked)
    [block] = whole.content
    assert block.type == "text"
    assert "Paris" in block.text
    with claude.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert len(texts) > 1
    assert "".join(texts) == block.text
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (
        whole.stop_reason,
        whole.usage.output_tokens,
    )
    counted = claude.messages.count_tokens(
        model=MODEL, system=asked["system"], messages=asked["messages"]
    )
    cached = whole.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == whole.usage.input_tokens + cached


def test_the_tools_loop_of_messages(claude: anthropic.Anthropic) -> None:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 96,
        "extra_body": GREEDY,
        "tools": [{"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}],
    }
    messages: Any = [{"role": "user", "content": "How is the weather in Paris?"}]
    choice: Any = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    whole = claude.messages.create(**asked, messages=messages, tool_choice=choice)
    assert whole.stop_reason == "tool_use"
    [call] = [block for block in whole.content if block.type == "tool_use"]
    assert isinstance(call.input["city"], str)
    with claude.messages.stream(**asked, messages=messages, tool_choice=choice) as stream:
        streamed = stream.get_final_message()
    assert [block.input for block in streamed.content if block.type == "tool_use"] == [call.input]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    messages += [
        {"role": "assistant", "content": [call.model_dump(exclude_none=True)]},
        {"role": "user", "content": [result]},
    ]
    answer = claude.messages.create(**asked, messages=messages, tool_choice={"type": "none"})
    assert [block.type for block in answer.content] == ["text"]


def test_a_message_is_parsed(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(
        model=MODEL,
        max_tokens=120,
        extra_body=GREEDY,
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        output_format=City,
    )
    assert message.stop_reason == "end_turn"
    assert isinstance(message.parsed_output, City)


def test_a_text_is_tokenized_as_it_is_answered(server: Server, client: openai.OpenAI) -> None:
    text = "The capital of France is naïve 東京 🙂"
    told = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()
    answer = client.completions.create(model=MODEL, prompt=told["tokens"], max_tokens=1)
    assert answer.usage is not None
    assert (told["count"], told["max_model_len"]) == (answer.usage.prompt_tokens, 1024)
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": told["tokens"]})
    assert back.json() == {"prompt": text}


def test_leaving_a_stream_gives_every_block_back(server: Server) -> None:
    for path, body in (
        ("responses", {"input": QUESTION, "max_output_tokens": 900}),
        ("messages", {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 900}),
    ):
        body |= {"stream": True}
        with httpx.stream("POST", f"{server.url}/v1/{path}", json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(12)]
    blocks = idle_state(server.state)["blocks"]
    assert blocks["free"] + blocks["cached"] == blocks["total"]
