"""Calls that must come and are cut: what there is of them is said as such, and never as words."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.anthropic.messages import MessagesAnswer, parse_messages
from gateway.flags import CHAT_TEMPLATE
from gateway.model import Model, load_model
from gateway.openai.call import Call
from gateway.openai.chat import ChatAnswer, parse_chat
from gateway.output import Finish, FinishReason, Piece
from tests.gateway import tiny_model

LENGTH = 4096
FUNCTION = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
HELLO = [{"role": "user", "content": "hello"}]
FAMILIES = {
    # a template, and a call as its model writes it where one must come
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"a": 1}}\n</tool_call>',
    "llama3_json": '{"name": "get_weather", "parameters": {"a": 1}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"a": 1}}]',
    "pythonic": "[get_weather(a=1)]",
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=a>\n1\n</parameter>\n</function>\n"
        "</tool_call>"
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, str]:
    directory = tiny_model.build(tmp_path_factory.mktemp("cut") / "tiny")
    template = CHAT_TEMPLATE.parse(request.param)
    assert template is not None
    return load_model(directory, chat_template=Path(template)), FAMILIES[request.param]


def parse(model: Model, choice: Any) -> Call:
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": choice}
    return parse_chat(json.dumps(body).encode(), model, LENGTH, "r1", random.Random())


def pieces_of(text: str, dice: random.Random) -> list[Piece]:
    """The text in pieces, cut anywhere, and then the limit."""
    places = sorted({0, len(text), *(dice.randrange(len(text) + 1) for _ in range(4))})
    finish = Finish(FinishReason.LENGTH, None, 3, 4, 0)
    return [
        *(Piece(0, text[start:end], [7], None, None) for start, end in pairwise(places)),
        Piece(0, "", [], None, finish),
    ]


def streamed(call: Call, model: Model, pieces: list[Piece]) -> dict[str, Any]:
    """The message that a stream's chunks make up."""
    answer = ChatAnswer(call, model.tokenizer)
    events = b"".join(answer.events([piece]) for piece in pieces).decode().split("\n\n")
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    for event in filter(None, events):
        delta = json.loads(event.removeprefix("data: "))["choices"][0]["delta"]
        if delta.get("content") is not None:
            message["content"] = (message["content"] or "") + delta["content"]
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(["", ""])
            for index, name in enumerate(("name", "arguments")):
                message["tool_calls"][part["index"]][index] += part["function"].get(name, "")
    return message


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_wherever_it_is_cut_there_is_no_content(family: tuple[Model, str], choice: Any) -> None:
    model, text = family
    call = parse(model, choice)
    dice = random.Random(4)
    said = []
    for length in range(len(text) + 1):
        pieces = pieces_of(text[:length], dice)
        answer = ChatAnswer(call, model.tokenizer)
        answer.collect(pieces)
        [whole] = answer.whole()["choices"]
        assert whole["message"]["content"] is None, text[:length]
        functions = [each["function"] for each in whole["message"].get("tool_calls", ())]
        calls = [[function["name"], function["arguments"]] for function in functions]
        stream = streamed(call, model, pieces)
        assert stream == {"content": None, "tool_calls": calls}, text[:length]
        said.append(calls)
    assert said[0] == []
    [[name, arguments]] = said[-1]
    assert (name, json.loads(arguments)) == ("get_weather", {"a": 1})


def test_where_it_need_not_come_it_is_words(family: tuple[Model, str]) -> None:
    model, text = family
    answer = ChatAnswer(parse(model, "auto"), model.tokenizer)
    answer.collect(pieces_of(text[:9], random.Random(4)))
    assert answer.whole()["choices"][0]["message"]["content"] == text[:9]


def test_the_same_for_anthropics_clients(family: tuple[Model, str]) -> None:
    model, text = family
    body = {
        "messages": HELLO,
        "max_tokens": 9,
        "tools": [{"name": "get_weather", "input_schema": FUNCTION["parameters"]}],
        "tool_choice": {"type": "any"},
    }
    call = parse_messages(json.dumps(body).encode(), model, LENGTH, "r1", random.Random())
    answer = MessagesAnswer(call, model.tokenizer)
    answer.collect(pieces_of(text[:9], random.Random(4)))
    assert answer.whole()["content"] == [{"type": "text", "text": ""}]
