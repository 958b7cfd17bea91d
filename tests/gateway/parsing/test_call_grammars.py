"""Answers that must be calls: whatever their grammar lets through is read as calls of the tools."""

import json
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jsonschema
import pytest

from gateway.conversation import Tool
from gateway.errors import RequestError
from gateway.grammar import GrammarKind, GrammarSpec, compiled, matcher_of
from gateway.parsing.call_grammars import answer_grammar
from gateway.parsing.deltas import Said
from gateway.parsing.formats import CALL_FORMATS, THOUGHTS, Thoughts
from gateway.parsing.parser import AnswerParser
from tests.gateway.parsing.whole import read_whole

END = 256
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "where": {"$ref": "#/$defs/where"},
        "unit": {"enum": ["C", "F", None, True]},
    },
    "required": ["days", "city"],
    "additionalProperties": False,
    "$defs": {"where": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
}
OPTIONS: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"const": "x"}, "b": {"type": "null"}, "c": {"const": 1.5}},
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    Tool("get_weather", None, WEATHER),
    Tool("options", None, OPTIONS),
    Tool("no-", None, NOTHING),
]
FIRST = {
    "hermes": "<tool_call>",
    "llama3_json": "{",
    "mistral": "[",
    "pythonic": "[",
    "qwen3_coder": "<tool_call>",
}
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}


def grammar(
    format_name: str | None,
    *,
    several: bool = True,
    thoughts: Thoughts | None = None,
    starts_thinking: bool = False,
    content: GrammarSpec | None = None,
    tools: Sequence[Tool] = TOOLS,
    tokens: Mapping[str, int] = MappingProxyType({}),
) -> GrammarSpec:
    return answer_grammar(
        content=content,
        form=CALL_FORMATS[format_name] if format_name else None,
        tools=tools,
        several=several,
        thoughts=thoughts,
        starts_thinking=starts_thinking,
        token=tokens.get,
    )


def some_answer(spec: GrammarSpec, begin: str, dice: random.Random) -> str:
    """One that begins so and that the grammar lets through, by chance."""
    matcher = matcher_of(compiled(spec))
    written = bytearray(begin.encode())
    assert matcher.consume_tokens(list(written))
    while True:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [token for token in range(END + 1) if mask >> token & 1]
        if END in allowed and (len(allowed) == 1 or dice.random() < 0.5):
            return written.decode()
        allowed = [token for token in allowed if token != END]
        closing = [token for token in allowed if token in b'"</'] if dice.random() < 0.4 else []
        token = dice.choice(closing or allowed)
        assert matcher.consume_token(token)
        written.append(token)
        assert len(written) < 100_000


def read(format_name: str, text: str, thoughts: Thoughts | None, inside: bool) -> Said:
    parser = AnswerParser(
        thoughts=thoughts,
        starts_thinking=inside,
        calls=CALL_FORMATS[format_name],
        tools=SCHEMAS,
        exact=True,
        at_start=not CALL_FORMATS[format_name].opening,
    )
    return read_whole(parser, text)


@pytest.mark.parametrize("format_name", CALL_FORMATS)
@pytest.mark.parametrize(
    ("thoughts", "inside"),
    [(None, False), (THOUGHTS["think"], False), (THOUGHTS["think"], True)],
)
def test_what_must_be_calls_is_read_as_calls(
    format_name: str, thoughts: Thoughts | None, inside: bool
) -> None:
    dice = random.Random(f"{format_name} {inside}")
    begins = [""]
    if thoughts is not None:
        begins = ["hm <\n</think>\n\n"] if inside else ["<think>hm</think>", FIRST[format_name]]
    for number in range(20):
        several = bool(number % 2)
        spec = grammar(format_name, several=several, thoughts=thoughts, starts_thinking=inside)
        text = some_answer(spec, begins[number // 2 % len(begins)], dice)
        said = read(format_name, text, thoughts, inside)
        assert said.content == "", text
        assert len(said.calls) >= 1, text
        assert several or len(said.calls) == 1
        for call in said.calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name] or {})


def test_later_mistral_models_write_each_call_by_name() -> None:
    tokens = {"[TOOL_CALLS]": 9, "[ARGS]": 99_999}
    spec = grammar("mistral", tools=TOOLS[:1], tokens=tokens)
    assert spec.text.startswith(
        "start: (calls)\nblock: (call_0)\ncalls: <[9]> block (<[9]> block)*\n"
        'call_0: "get_weather" <[99999]> arguments_0\n'
    )
    assert "99999" in compiled(spec)


def test_a_schema_that_cannot_be_enforced_is_refused() -> None:
    tool = Tool("f", None, {"type": "object", "anyOf": [{"required": ["a"]}]})
    with pytest.raises(RequestError, match=r'tools has "anyOf" beside properties'):
        grammar("pythonic", tools=[tool])


CONTENTS = [
    (GrammarSpec.json_schema(WEATHER, "response_format"), '{"city": "Rome", "days": 3}'),
    (GrammarSpec(GrammarKind.REGEX, r"a/b\d{2}\n", "guided_regex"), "a/b12\n"),
    (GrammarSpec.choice(["yes", "no / }"], "guided_choice"), "no / }"),
    (GrammarSpec(GrammarKind.LARK, 'start: "x" start | "y}"', "guided_grammar"), "xxy}"),
]


@pytest.mark.parametrize(("content", "text"), CONTENTS)
@pytest.mark.parametrize("format_name", [None, *CALL_FORMATS])
def test_content_keeps_its_form_beside_thoughts_and_calls(
    format_name: str | None, content: GrammarSpec, text: str
) -> None:
    for thoughts, inside, before in (
        (None, False, ""),
        (THOUGHTS["think"], False, "<think>\nhm\n</think>\n\n"),
        (THOUGHTS["think"], True, "hm {\n</think>\n\n"),
        (THOUGHTS["mistral"], False, "[THINK]hm[/THINK]"),
    ):
        spec = grammar(format_name, content=content, thoughts=thoughts, starts_thinking=inside)
        assert spec.field == content.field
        matcher = matcher_of(compiled(spec))
        assert matcher.consume_tokens(list((before + text).encode()))
        assert matcher.is_accepting()
        refused = matcher_of(compiled(spec))
        assert refused.try_consume_tokens(list(f"{before}Well".encode())) < len(before) + 4
        if format_name is not None:
            call = some_answer(
                grammar(format_name, thoughts=thoughts, starts_thinking=inside),
                before + FIRST[format_name],
                random.Random(1),
            )
            calling = matcher_of(compiled(spec))
            assert calling.consume_tokens(list(call.encode()))
            assert calling.is_accepting()


def test_content_that_cannot_be_enforced_is_refused_under_its_own_name() -> None:
    content = GrammarSpec(GrammarKind.REGEX, "(", "guided_regex")
    with pytest.raises(RequestError, match="guided_regex is not a regular expression"):
        grammar("hermes", content=content)
