"""Tools with the real model, through the openai package: calls that must come, come well formed."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.e2e.server import Server, serve

CITIES = ["Paris", "London", "Rome"]
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": CITIES},
                    "days": {"type": "integer", "minimum": 1, "maximum": 7},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    },
]
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What will the weather be in Paris for the next three days?"}
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime_dir = tmp_path_factory.mktemp("run")
    flags = ("--max-model-len", "2048", "--chat-template", "hermes")
    with serve("smollm2", runtime_dir, *flags) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    said = {"messages": QUESTION, "tools": TOOLS, "max_tokens": 200, "seed": 1, **fields}
    return client.chat.completions.create(model="smollm2", **said)


def check_weather(arguments: str) -> None:
    said = json.loads(arguments)
    assert said["city"] in CITIES
    assert 1 <= said["days"] <= 7
    assert set(said) == {"city", "days"}


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI, temperature: float) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(client, tool_choice=choice, temperature=temperature, n=3)
    for said in answer.choices:
        assert said.finish_reason == "tool_calls"
        assert said.message.content is None
        (call,) = said.message.tool_calls
        assert call.function.name == "get_weather"
        check_weather(call.function.arguments)
    assert len({said.message.tool_calls[0].id for said in answer.choices}) == 3


@pytest.mark.parametrize("parallel", [True, False])
def test_some_tool_that_must_be_called_is_called(client: openai.OpenAI, parallel: bool) -> None:
    for seed in range(2):
        answer = ask(
            client, tool_choice="required", parallel_tool_calls=parallel, seed=seed, temperature=1
        )
        said = answer.choices[0]
        calls = said.message.tool_calls
        assert calls
        assert parallel or len(calls) == 1
        assert said.finish_reason == "tool_calls"
        for call in calls:
            if call.function.name == "get_weather":
                check_weather(call.function.arguments)
            else:
                assert (call.function.name, json.loads(call.function.arguments)) == ("get_time", {})


def test_streamed_calls_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"tool_choice": "required", "temperature": 0}
    whole = ask(client, **fields).choices[0]
    with client.chat.completions.stream(
        model="smollm2", messages=QUESTION, tools=TOOLS, max_tokens=200, seed=1, **fields
    ) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason
    assert [call.function.name for call in streamed.message.tool_calls or []] == [
        call.function.name for call in whole.message.tool_calls
    ]
    assert [call.function.arguments for call in streamed.message.tool_calls or []] == [
        call.function.arguments for call in whole.message.tool_calls
    ]


def test_results_go_back_to_the_model(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    message = ask(client, tool_choice=choice, temperature=0).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny, 25 °C"}
    messages = [*QUESTION, message, result]
    answer = ask(client, messages=messages, tool_choice="none", temperature=0, max_tokens=40)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.tool_calls is None


def test_words_and_calls_are_the_models_choice(client: openai.OpenAI) -> None:
    """With `auto` whatever comes is said once, streamed or not."""
    whole = ask(client, temperature=0, max_tokens=60).choices[0]
    with ask(client, temperature=0, max_tokens=60, stream=True) as stream:
        chunks = list(stream)
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert content == (whole.message.content or "")
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_calls_of_strict_functions_are_right_whenever_they_come(client: openai.OpenAI) -> None:
    """Earlier turns show a model of this size how to call, with arguments that are not allowed."""
    strict: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    asked: list[Any] = []
    for number, city in enumerate(("Berlin", "Oslo", "Bonn")):
        arguments = json.dumps({"city": city, "days": 30 + number, "unit": "C"})
        function = {"name": "get_weather", "arguments": arguments}
        call = {"id": f"c{number}", "type": "function", "function": function}
        asked += [
            {"role": "user", "content": f"What will the weather be in {city}?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ]
    answer = ask(
        client, messages=[*asked, *QUESTION], tools=strict, temperature=1, n=12, max_tokens=80
    )
    num_calls = 0
    for said in answer.choices:
        calls = said.message.tool_calls or []
        whole = calls[:-1] if said.finish_reason == "length" else calls
        for call in whole:
            if call.function.name == "get_weather":
                check_weather(call.function.arguments)
            else:
                assert (call.function.name, json.loads(call.function.arguments)) == ("get_time", {})
        num_calls += len(whole)
    assert num_calls > 0


def test_a_choice_that_is_no_tool_is_refused(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "nobody"}}
    with pytest.raises(openai.BadRequestError, match='names "nobody"') as caught:
        ask(client, tool_choice=choice)
    assert caught.value.param == "tool_choice"
