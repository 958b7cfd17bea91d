"""What answers say, and that it does not depend on how they were cut into tokens."""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.parsing.deltas import CallBegun, Delta, Said, gathered
from gateway.parsing.formats import CALL_FORMATS, THOUGHTS
from gateway.parsing.parser import AnswerParser
from tests.gateway.parsing.whole import read_whole

STRINGS = {"type": "object", "properties": {"s": {"type": "string"}, "l": {"type": "array"}}}
TOOLS = {"get_weather": None, "search": None, "f": STRINGS}
THINK = THOUGHTS["think"]


def parser(format_name: str | None, **options: Any) -> AnswerParser:
    calls = CALL_FORMATS[format_name] if format_name else None
    return AnswerParser(calls=calls, tools=TOOLS, **options)


def read(format_name: str | None, text: str, **options: Any) -> Said:
    return read_whole(parser(format_name, **options), text)


def calls_of(said: Said) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in said.calls]


HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
LLAMA = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
MISTRAL = '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]'
MISTRAL_NAMED = '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'
PYTHONIC = '[get_weather(city="Paris")]'
XML = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
    "</tool_call>"
)
EACH = [
    ("hermes", HERMES),
    ("llama3_json", LLAMA),
    ("llama3_json", f"<|python_tag|>{LLAMA}"),
    ("mistral", MISTRAL),
    ("mistral", MISTRAL_NAMED),
    ("mistral", '[TOOL_CALLS]get_weather[CALL_ID]abc123XYZ[ARGS]{"city": "Paris"}'),
    ("pythonic", PYTHONIC),
    ("pythonic", f"<|python_start|>{PYTHONIC}<|python_end|>"),
    ("qwen3_coder", XML),
    ("qwen3_coder", XML.replace("\n", "")),
    ("qwen3_coder", XML[12:-13]),
]


@pytest.mark.parametrize(("format_name", "text"), EACH)
def test_a_call_is_read_and_leaves_no_content(format_name: str, text: str) -> None:
    said = read(format_name, text)
    assert calls_of(said) == [("get_weather", {"city": "Paris"})]
    assert (said.content, said.reasoning) == ("", "")


@pytest.mark.parametrize(("format_name", "text"), EACH)
def test_words_before_and_after_a_call_are_content(format_name: str, text: str) -> None:
    said = read(format_name, f"Let me look. \n{text}\n\nThat was it.")
    assert calls_of(said) == [("get_weather", {"city": "Paris"})]
    assert said.content == "Let me look.That was it."


@pytest.mark.parametrize(
    ("format_name", "text"),
    [
        ("hermes", f"{HERMES}\n{HERMES.replace('Paris', 'Rome')}"),
        ("llama3_json", f"{LLAMA}; {LLAMA.replace('Paris', 'Rome')}"),
        ("llama3_json", f"{LLAMA}\n{LLAMA.replace('Paris', 'Rome')}"),
        ("llama3_json", f"<|python_tag|>{LLAMA}<|python_tag|>{LLAMA.replace('Paris', 'Rome')}"),
        ("mistral", MISTRAL[:-1] + ", " + LLAMA.replace("Paris", "Rome") + "]"),
        ("mistral", MISTRAL_NAMED + MISTRAL_NAMED.replace("Paris", "Rome")),
        ("pythonic", '[get_weather(city="Paris"), get_weather(city="Rome")]'),
        ("qwen3_coder", f"{XML}\n{XML.replace('Paris', 'Rome')}"),
    ],
)
def test_several_calls_are_numbered_and_have_ids_of_their_own(format_name: str, text: str) -> None:
    deltas = parser(format_name).feed(text)
    begun = [delta for delta in deltas if isinstance(delta, CallBegun)]
    assert [delta.index for delta in begun] == [0, 1]
    assert begun[0].id != begun[1].id
    cities = [{"city": "Paris"}, {"city": "Rome"}]
    assert [arguments for _, arguments in calls_of(read(format_name, text))] == cities
    only = read(format_name, text, parallel=False)
    assert calls_of(only) == [("get_weather", {"city": "Paris"})]
    assert only.content == ""


def test_ids_are_such_as_the_models_template_takes() -> None:
    assert re.fullmatch(r"call_[0-9a-f]{24}", read("hermes", HERMES).calls[0].id)
    assert re.fullmatch(r"[A-Za-z0-9]{9}", read("mistral", MISTRAL).calls[0].id)


@pytest.mark.parametrize(
    ("format_name", "text"),
    [
        ("hermes", "<tool_call>"),
        ("hermes", "<tool_call>\nlook it up\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "f", "argu'),
        ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "a b", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "surprise": 1}</tool_call>'),
        ("llama3_json", '{"name": "nobody", "parameters": {}}'),
        ("llama3_json", '{"name": "f"}'),
        ("llama3_json", '{"age": 3, "name": "f", "parameters": {}}'),
        ("llama3_json", 'if (a) { return "b"; }'),
        ("llama3_json", '<|python_tag|>print("hello")'),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS] three"),
        ("mistral", "[TOOL_CALLS][]"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[nobody(a=1)]"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(a=b)]"),
        ("pythonic", "[f(a=1, a=2)]"),
        ("pythonic", '[f(a="never closed)]'),
        ("pythonic", "[f(a=1.2.3)]"),
        ("pythonic", "[f(a=" + "[" * 100 + "]" * 100 + ")]"),
        ("pythonic", r'[f(a="\x4")]'),
        ("qwen3_coder", "<tool_call>\nf\n</tool_call>"),
        ("qwen3_coder", "<tool_call><function=a b></function></tool_call>"),
        ("qwen3_coder", "<function=nobody></function>"),
        ("qwen3_coder", "<tool_call><function=f"),
    ],
)
def test_what_is_no_call_is_content_as_it_was_written(format_name: str, text: str) -> None:
    said = read(format_name, f"So: {text} Done.")
    assert said.calls == []
    assert said.content == f"So: {text} Done."


def test_a_call_after_one_that_is_none_is_still_read() -> None:
    said = read("hermes", f"<tool_call>oops</tool_call>\n{HERMES}")
    assert said.content == "<tool_call>oops</tool_call>"
    assert len(said.calls) == 1


@pytest.mark.parametrize(
    ("format_name", "text", "content", "arguments"),
    [
        ("hermes", HERMES.replace("}}", "}"), "", '{"city": "Paris"}'),
        ("hermes", HERMES.removesuffix("</tool_call>"), "", '{"city": "Paris"}'),
        ("hermes", HERMES.replace("}}", '}, "x": 2}'), ', "x": 2}\n</tool_call>', None),
        ("hermes", HERMES.replace('"Paris"', "[1, 2,}"), "", '{"city": [1, 2,}}'),
        ("hermes", HERMES.partition(' "Paris')[0], "", '{"city":'),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", "{}"),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", "{}"),
        (
            "hermes",
            r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>',
            "",
            '{"a": 1}',
        ),
        (
            "hermes",
            '<tool_call>{"arguments": {"a": "}"}, "name": "f"}</tool_call>',
            "",
            '{"a": "}"}',
        ),
        ("mistral", MISTRAL[:-1] + " or", " or", '{"city": "Paris"}'),
        ("pythonic", '[f(a="x"), nobody()]', ", nobody()]", '{"a": "x"}'),
        ("llama3_json", LLAMA + "; and", "; and", '{"city": "Paris"}'),
        ("qwen3_coder", XML.replace("</function>\n", ""), "", None),
        ("qwen3_coder", XML.replace("</function>", "or"), "or\n</tool_call>", None),
        ("qwen3_coder", XML.partition("\n</parameter>")[0], "", '{"city": '),
        ("qwen3_coder", XML.partition("\n</function>")[0], "", '{"city": "Paris"'),
        ("qwen3_coder", "<tool_call><function=f>\n</function></tool_call>", "", "{}"),
        ("qwen3_coder", "<tool_call><function=f>\n<parameter=a", "", ""),
        ("qwen3_coder", "<tool_call><function=f>\n<parameter=a>", "", '{"a": '),
        ("qwen3_coder", "<tool_call><function=f>\n<para", "", ""),
    ],
)
def test_calls_that_go_wrong_later_keep_what_was_said(
    format_name: str, text: str, content: str, arguments: str | None
) -> None:
    said = read(format_name, text)
    assert len(said.calls) == 1
    assert said.calls[0].arguments == ('{"city": "Paris"}' if arguments is None else arguments)
    assert said.content == content


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("'single'", "single"),
        ('"don\'t ) ]"', "don't ) ]"),
        (r'"\n\t\\ \u00e9 \x41 \d"', "\n\t\\ é A \\d"),
        (r'"\ud83d\ude42"', "🙂"),
        (r'"\ud83d"', "�"),
        ('""', ""),
        ('"""long "and" quoted"""', 'long "and" quoted'),
        ("True", True),
        ("false", False),
        ("None", None),
        ("-1.5e3", -1500.0),
        ("+7", 7.0),
        (".5", 0.5),
        ("9" * 900, int("9" * 900)),
        ("[1, [2, ], {'a': (3, 4)}]", [1, [2], {"a": [3, 4]}]),
        ("{}", {}),
    ],
)
def test_python_literals_become_json(literal: str, value: Any) -> None:
    assert calls_of(read("pythonic", f"[f(a={literal})]")) == [("f", {"a": value})]


def test_arguments_are_passed_on_while_they_are_written() -> None:
    reading = parser("hermes")
    before = HERMES.partition("Paris")[0]
    told: list[list[Delta]] = [reading.feed(text) for text in (before, "Par", "is", '"}}')]
    assert all(told)
    said = gathered([delta for deltas in told for delta in deltas])
    assert said.calls[0].arguments == '{"city": "Paris"}'


def test_words_are_passed_on_as_soon_as_they_cannot_be_a_marker() -> None:
    reading = parser("hermes")
    assert gathered(reading.feed("a <tool")).content == "a"
    assert gathered(reading.feed("_box")).content == " <tool_box"


# What models think.


@pytest.mark.parametrize(
    ("text", "starts_thinking", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, "hm", "Yes."),
        ("\n <think>hm</think>Yes.", False, "hm", "Yes."),
        ("hm\n</think>\n\nYes.", True, "hm", "Yes."),
        ("<think>\nhm</think>Yes.", True, "hm", "Yes."),
        ("never done", True, "never done", ""),
        ("no thoughts, but <think>", False, "", "no thoughts, but <think>"),
        ("<think></think>Yes.", False, "", "Yes."),
        ("a </thin b", True, "a </thin b", ""),
    ],
)
def test_thoughts_are_told_apart(
    text: str, starts_thinking: bool, reasoning: str, content: str
) -> None:
    said = read(None, text, thoughts=THINK, starts_thinking=starts_thinking)
    assert (said.reasoning, said.content) == (reasoning, content)


def test_a_call_in_thoughts_is_only_thought_of() -> None:
    said = read("hermes", f"<think>maybe {HERMES}</think>\n{HERMES}", thoughts=THINK)
    assert said.reasoning == f"maybe {HERMES}"
    assert (len(said.calls), said.content) == (1, "")


# However it is cut.


FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *("<|python_tag|>", "<|python_start|>", "<|python_end|>", "{", "}", "[", "]", "(", ")", ","),
    *('"name"', '"arguments"', '"parameters"', ": ", '"', "'", "\\", "\\u00e9", "=", "f", "search"),
    *('"f"', '{"name": "f", "arguments": ', '{"a": {"b": ["}", "\\""]}}', "f(", "a=", "[f(a="),
    *(" ", "\n", "   \n", " " * 70, "é", "🙂", "東京", "words", ";", "null", "1.5", '"""'),
    *("<function=", "<function=f>", "<parameter=", "<parameter=a>\n", "</parameter>"),
    *("</function>", "None", "<parameter=s>", "<parameter=l>"),
    *(HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PYTHONIC, XML),
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=14).map(
    "".join
)
FORMATS = st.sampled_from([None, *CALL_FORMATS])


def plain(said: Said) -> tuple[str, str, list[tuple[str, str]]]:
    return said.content, said.reasoning, [(call.name, call.arguments) for call in said.calls]


def cut(text: str, cuts: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


def streamed(reading: AnswerParser, pieces: Sequence[str]) -> Said:
    deltas = [delta for piece in pieces for delta in reading.feed(piece)]
    return gathered([*deltas, *reading.close()])


@settings(max_examples=1500, deadline=None)
@given(
    FORMATS,
    TEXTS,
    st.lists(st.integers(0, 1 << 16), max_size=12),
    st.sampled_from([None, *THOUGHTS.values()]),
    st.booleans(),
    st.booleans(),
)
@example("hermes", HERMES, [3], None, False, True)
def test_a_stream_says_what_the_whole_answer_says(
    format_name: str | None,
    text: str,
    cuts: list[int],
    thoughts: Any,
    starts_thinking: bool,
    parallel: bool,
) -> None:
    def reading() -> AnswerParser:
        return parser(
            format_name, thoughts=thoughts, starts_thinking=starts_thinking, parallel=parallel
        )

    whole = plain(read_whole(reading(), text))
    assert plain(streamed(reading(), cut(text, cuts))) == whole
    assert plain(streamed(reading(), list(text))) == whole


@settings(max_examples=500, deadline=None)
@given(FORMATS, TEXTS)
def test_no_word_is_lost(format_name: str | None, text: str) -> None:
    """Every letter or digit that is no call's own comes out again, once and in order."""
    said = read(format_name, text)
    if not said.calls:
        assert said.content == text


ARGUMENTS = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


def written(format_name: str, calls: list[tuple[str, Any]], *, escaped: bool) -> str:
    objects = [
        json.dumps({"name": name, "arguments": arguments}, ensure_ascii=escaped)
        for name, arguments in calls
    ]
    match format_name:
        case "hermes":
            return "\n".join([f"<tool_call>\n{call}\n</tool_call>" for call in objects])
        case "llama3_json":
            return "; ".join(objects)
        case "mistral" if escaped:
            return "".join([f"[TOOL_CALLS]{name}[ARGS]{json.dumps(a)}" for name, a in calls])
        case "mistral":
            return f"[TOOL_CALLS][{', '.join(objects)}]"
        case _:
            parts = [
                f"{name}({', '.join([f'{key}={value!r}' for key, value in arguments.items()])})"
                for name, arguments in calls
            ]
            return f"[{', '.join(parts)}]"


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([name for name in CALL_FORMATS if name != "qwen3_coder"]),
    st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), ARGUMENTS), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 1 << 16), max_size=12),
    st.sampled_from(["", "Well then.", "<think>\nhm {x} [y]\n</think>\n\nOn we go:"]),
)
def test_calls_come_out_as_they_went_in(
    format_name: str,
    calls: list[tuple[str, Any]],
    escaped: bool,
    cuts: list[int],
    before: str,
) -> None:
    text = before + written(format_name, calls, escaped=escaped)
    said = streamed(parser(format_name, thoughts=THINK), cut(text, cuts))
    assert calls_of(said) == calls
    assert said.content == before.partition("</think>\n\n")[2 if "think" in before else 0]
    assert len({call.id for call in said.calls}) == len(calls)


@pytest.mark.parametrize(
    ("format_name", "text"),
    [
        ("hermes", "<tool_call>" * 5_000),
        ("hermes", '<tool_call>{"arguments": {"a": "' + "<tool_call>x" * 5_000),
        ("hermes", " " * 50_000 + "x"),
        ("llama3_json", "{" * 50_000),
        ("llama3_json", '{"name":' * 6_000),
        ("mistral", "[TOOL_CALLS][" * 3_000),
        ("pythonic", "[f(a=[" * 8_000),
        ("pythonic", '[f(a="' + "\\'" * 25_000),
        ("qwen3_coder", "<tool_call>\n<function=" * 4_000),
        ("qwen3_coder", "<function=nobody><parameter=" * 3_000),
        (None, "<think>" + "</think" * 7_000),
    ],
)
def test_nothing_is_kept_to_be_read_again(format_name: str | None, text: str) -> None:
    """So that work is linear: what is unread, and looked at anew with each piece, stays short."""
    reading = parser(format_name, thoughts=THINK)
    longest = 0
    deltas: list[Delta] = []
    for at in range(0, len(text), 4):
        deltas += reading.feed(text[at : at + 4])
        longest = max(longest, reading.num_kept)
    assert longest <= 128
    said = gathered([*deltas, *reading.close()])
    assert plain(said) == plain(read_whole(parser(format_name, thoughts=THINK), text))
    assert len(said.content) + len(said.reasoning) >= len(text) - 16
