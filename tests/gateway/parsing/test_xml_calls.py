"""Calls in tags: what an argument is depends on its schema."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.parsing.deltas import gathered
from gateway.parsing.formats import CALL_FORMATS
from gateway.parsing.object_rules import ANY, types_of
from gateway.parsing.parser import AnswerParser
from gateway.parsing.xml_calls import as_json
from tests.gateway.parsing.whole import read_whole

FORM = CALL_FORMATS["qwen3_coder"]
KINDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "perhaps_text": {"type": ["string", "null"]},
    "count": {"type": "integer"},
    "size": {"type": "number"},
    "flag": {"type": "boolean"},
    "list": {"type": "array"},
    "object": {"type": "object"},
    "nothing": {"type": "null"},
    "one_of_these": {"enum": ["3", "x"]},
    "referred": {"$ref": "#/$defs/text"},
    "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": KINDS,
    "$defs": {"text": {"type": "string"}},
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: "</parameter>" not in f"\n{text}\n"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXTS,
    "perhaps_text": st.none() | TEXTS.filter(lambda text: text.strip() not in ("null", "None")),
    "count": st.integers(),
    "size": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    "flag": st.booleans(),
    "list": st.lists(JSON, max_size=3),
    "object": st.dictionaries(TEXTS, JSON, max_size=3),
    "nothing": st.none(),
    "one_of_these": st.sampled_from(["3", "x"]),
    "referred": TEXTS,
    "either": st.none() | st.integers(),
}


def parser(**options: Any) -> AnswerParser:
    return AnswerParser(calls=FORM, tools={"f": SCHEMA}, **options)


def shown(value: Any) -> str:
    """As the models' chat template shows it to them."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def written(arguments: dict[str, Any]) -> str:
    inside = "".join(
        f"<parameter={name}>\n{shown(value)}\n</parameter>\n" for name, value in arguments.items()
    )
    return f"<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>"


@settings(max_examples=400, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES), st.integers(1, 9))
def test_arguments_come_out_as_a_template_writes_them(arguments: dict[str, Any], cut: int) -> None:
    text = f"Well. {written(arguments)}"
    reading = parser()
    deltas = [
        delta for at in range(0, len(text), cut) for delta in reading.feed(text[at : at + cut])
    ]
    said = gathered([*deltas, *reading.close()])
    assert said.content == "Well."
    (call,) = said.calls
    assert json.loads(call.arguments) == arguments


def test_a_text_is_passed_on_while_it_is_written() -> None:
    reading = parser()
    before, after = written({"text": "one\ntwo"}).split("two")
    # the break may belong to the tag
    assert gathered(reading.feed(before)).calls[0].arguments == '{"text": "one'
    assert all(reading.feed(piece) for piece in ("tw", "o", after))


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("True", {"type": "boolean"}, True),
        ("false", {"type": "boolean"}, False),
        ("None", {"type": ["integer", "null"]}, None),
        ("None", {"type": "string"}, "None"),
        ("3", {"type": "string"}, "3"),
        (" 3 ", {"type": "integer"}, 3),
        ("three", {"type": "integer"}, "three"),
        ("3", {"type": ["integer", "string"]}, 3),
        ("three", {"type": ["integer", "string"]}, "three"),
        ("2.5", {"type": ["integer", "string"]}, "2.5"),
        ("NaN", {"type": "number"}, "NaN"),
        ("['a', True]", {"type": "array"}, ["a", True]),
        ("{'a': None}", {"type": "object"}, {"a": None}),
        ("['a'] + b", {"type": "array"}, "['a'] + b"),
        ("[" * 100, {"type": "array"}, "[" * 100),
        ('{"a": 1}', {}, {"a": 1}),
        ("words", {}, "words"),
        ("[1]", {"anyOf": [{"type": "array"}, {"type": "string"}]}, [1]),
        ("7", {"allOf": [{"type": ["integer", "string"]}, {"type": "string"}]}, "7"),
        ("7", {"const": "7"}, "7"),
        ("7", {"$ref": "#/nowhere"}, 7),
    ],
)
def test_what_is_written_is_read_by_its_schema(
    text: str, schema: dict[str, Any], value: Any
) -> None:
    assert json.loads(as_json(text, types_of(schema, schema))) == value


def test_a_schema_without_end_may_be_anything() -> None:
    root: dict[str, Any] = {"$ref": "#/a", "a": {"$ref": "#/a"}}
    assert types_of(root, root) == ANY


def test_an_argument_that_no_schema_knows_is_read_as_what_it_looks_like() -> None:
    said = read_whole(parser(), written({"new": 3, "newer": "so"}))
    assert json.loads(said.calls[0].arguments) == {"new": 3, "newer": "so"}


def test_a_tag_within_a_json_text_is_part_of_it_where_json_is_certain() -> None:
    text = written({"list": ["</parameter>"]})
    said = read_whole(parser(exact=True), text)
    assert json.loads(said.calls[0].arguments) == {"list": ["</parameter>"]}
    assert said.content == ""
