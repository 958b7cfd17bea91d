"""How the families of models write calls of tools, and what they think.

    hermes       <tool_call>{"name": "f", "arguments": {...}}</tool_call>, again for each call
    llama3_json  {"name": "f", "parameters": {...}}, several with ";" between them; perhaps after
                 <|python_tag|>
    mistral      [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...] in earlier models,
                 [TOOL_CALLS]f[ARGS]{...} for each call in later ones
    pythonic     [f(a=1, b="x"), g()]
    qwen3_coder  <tool_call><function=f><parameter=a>1</parameter></function></tool_call>, with line
                 breaks, again for each call

Words may come before, between and after. What does not come out as a call is content, as it was
written. Where calls have no marker of their own, only those of tools that there are count.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gateway.errors import ModelError, quote
from gateway.parsing.deltas import Content, Reasoning
from gateway.parsing.json_calls import (
    checked_name,
    read_call,
    read_object,
    read_plain_call,
)
from gateway.parsing.python_calls import read_python_calls
from gateway.parsing.reader import Markers, NotACall, Reader, Schemas, Steps
from gateway.parsing.xml_calls import read_xml_call

T = TypeVar("T")

AUTO = "auto"
NONE = "none"

ReadCalls = Callable[[Reader, str, Schemas], Steps[None]]
"""Takes the calls after a marker, which is held; raises NotACall when there is none (any more),
with what is not part of one held. The schemas are those of the tools there are."""

_ID = re.compile(r"[A-Za-z0-9]")
_NAME = re.compile(r"[A-Za-z0-9_.:/-]")


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How a model sets apart what it thinks."""

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a model calls tools."""

    name: str
    markers: tuple[str, ...]
    """What calls may begin with."""
    tokens: tuple[str, ...]
    """Of the format's own words, those that are special tokens in some vocabularies."""
    read_calls: ReadCalls
    opening: str = ""
    """The marker by which every call can be told from text; empty: there is none, so that calls
    that are held to a schema must be what an answer begins with."""
    short_ids: bool = False
    """Its templates take only ids of nine letters and digits."""


def read_answer(
    reader: Reader,
    thoughts: Thoughts | None,
    starts_thinking: bool,
    calls: CallFormat | None,
    known: Schemas,
    at_start: bool = False,
) -> Steps[None]:
    """Reads all that a model says. `known` are the tools; with `at_start` calls are only what it
    begins with."""
    if thoughts is not None:
        yield from _read_thoughts(reader, thoughts, starts_thinking)
    if calls is not None and at_start:
        yield from _read_first_calls(reader, calls, known)
        calls = None
    markers = Markers(_markers(reader, calls) if calls is not None else ())
    while (marker := (yield from reader.words(markers, Content))) is not None:
        assert calls is not None
        try:
            yield from calls.read_calls(reader, marker, known)
        except NotACall:
            reader.release()
        else:
            yield from reader.skip_space()
            reader.commit()


def _markers(reader: Reader, calls: CallFormat) -> tuple[str, ...]:
    return (calls.opening,) if reader.exact and calls.opening else calls.markers


def _read_first_calls(reader: Reader, calls: CallFormat, known: Schemas) -> Steps[None]:
    """Takes calls while nothing else comes."""
    while True:
        reader.hold()
        for marker in _markers(reader, calls):
            if (yield from reader.opens_with(marker)):
                break
        else:
            break
        try:
            yield from calls.read_calls(reader, marker, known)
        except NotACall:
            break
        yield from reader.skip_space()
        reader.commit()
    reader.release()


def _read_thoughts(reader: Reader, thoughts: Thoughts, starts_thinking: bool) -> Steps[None]:
    """They come first; a model whose prompt begins them may still write the marker once more."""
    if (yield from reader.opens_with(thoughts.begin)) or starts_thinking:
        yield from reader.skip_space()
        yield from reader.words(Markers((thoughts.end,)), Reasoning)
        yield from reader.skip_space()
        reader.commit()


def _read_hermes(reader: Reader, marker: str, known: Schemas) -> Steps[None]:
    yield from reader.skip_space()
    yield from reader.expect("{")
    yield from read_call(reader, None)
    reader.hold()
    yield from reader.skip_space()
    yield from reader.accept("</tool_call>")


def _read_llama(reader: Reader, marker: str, known: Schemas) -> Steps[None]:
    if marker != "{":
        yield from reader.skip_space()
        yield from reader.expect("{")
    read = read_plain_call if reader.exact else read_call
    while True:
        yield from read(reader, known)
        yield from reader.skip_space()
        reader.hold()
        if (yield from reader.accept(";")) or (yield from reader.accept(",")):
            yield from reader.skip_space()
        yield from reader.expect("{")


def _read_mistral(reader: Reader, marker: str, known: Schemas) -> Steps[None]:
    yield from reader.skip_space()
    match (yield from reader.peek()):
        case "[":
            yield from reader.expect("[")
            yield from _read_json_list(reader)
        case "{":
            yield from reader.expect("{")
            yield from read_call(reader, None)
        case _:
            yield from _read_named(reader)


def _read_json_list(reader: Reader) -> Steps[None]:
    while True:
        yield from reader.skip_space()
        yield from reader.expect("{")
        yield from read_call(reader, None)
        reader.hold()
        yield from reader.skip_space()
        if not (yield from reader.accept(",")):
            break
    yield from reader.expect("]")


def _read_named(reader: Reader) -> Steps[None]:
    """f[ARGS]{...}, perhaps with [CALL_ID] and an id before the arguments."""
    name = checked_name((yield from reader.run_of(_NAME, 128)), None)
    if (yield from reader.accept("[CALL_ID]")):
        yield from reader.run_of(_ID, 64)
    yield from reader.accept("[ARGS]")
    yield from reader.skip_space()
    if (yield from reader.peek()) != "{":
        raise NotACall
    reader.begin_call(name)
    yield from read_object(reader, reader.say_arguments)


def _read_pythonic(reader: Reader, marker: str, known: Schemas) -> Steps[None]:
    if marker != "[":
        yield from reader.skip_space()
        yield from reader.expect("[")
    yield from read_python_calls(reader, known)
    reader.hold()
    yield from reader.skip_space()
    yield from reader.accept("<|python_end|>")


CALL_FORMATS = {
    form.name: form
    for form in (
        CallFormat(
            "hermes",
            ("<tool_call>",),
            ("<tool_call>", "</tool_call>"),
            _read_hermes,
            opening="<tool_call>",
        ),
        CallFormat("llama3_json", ("<|python_tag|>", "{"), ("<|python_tag|>",), _read_llama),
        CallFormat(
            "mistral",
            ("[TOOL_CALLS]",),
            ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
            _read_mistral,
            opening="[TOOL_CALLS]",
            short_ids=True,
        ),
        CallFormat(
            "pythonic",
            ("<|python_start|>", "["),
            ("<|python_start|>", "<|python_end|>"),
            _read_pythonic,
        ),
        CallFormat(
            "qwen3_coder",
            ("<tool_call>", "<function="),
            ("<tool_call>", "</tool_call>"),
            read_xml_call,
            opening="<tool_call>",
        ),
    )
}

_OTHER_NAMES = {
    # what other servers call the same
    "qwen": "hermes",
    "qwen3_xml": "qwen3_coder",
    "llama3": "llama3_json",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "deepseek_r1": "think",
    "qwen3": "think",
}

THOUGHTS = {
    "think": Thoughts("<think>", "</think>"),
    "mistral": Thoughts("[THINK]", "[/THINK]"),
}


def call_format(name: str, template: str) -> CallFormat | None:
    """The format of that name; for "auto", the one that the chat template shows to the model.

    Raises ModelError if there is no format of that name.
    """
    if name != AUTO:
        return _named("--tool-call-parser", name, CALL_FORMATS)
    if "[TOOL_CALLS]" in template:
        return CALL_FORMATS["mistral"]
    if "<tool_call>" in template:
        if "<arg_key>" in template:  # GLM's tags inside of it
            return None
        return CALL_FORMATS["qwen3_coder" if "<function=" in template else "hermes"]
    if "func_name1(" in template or "<|python_start|>" in template:
        return CALL_FORMATS["pythonic"]
    if "<|python_tag|>" in template or '"parameters": dictionary' in template:
        return CALL_FORMATS["llama3_json"]
    return None


def thoughts_format(name: str, template: str) -> Thoughts | None:
    """How the model sets its thoughts apart; "auto" is by the chat template, as above."""
    if name != AUTO:
        return _named("--reasoning-parser", name, THOUGHTS)
    for thoughts in THOUGHTS.values():
        if thoughts.begin in template or thoughts.end in template:
            return thoughts
    return None


def begins_thinking(thoughts: Thoughts, tail: str, *, inside: bool) -> bool:
    """Whether an answer after `tail` begins with thoughts; `inside` a turn that has begun, they may
    have begun anywhere in it."""
    if inside:
        return tail.rfind(thoughts.begin) > tail.rfind(thoughts.end)
    return tail.rstrip().endswith(thoughts.begin)


def _named(flag: str, name: str, formats: Mapping[str, T]) -> T | None:
    if name == NONE:
        return None
    form = formats.get(_OTHER_NAMES.get(name, name))
    if form is None:
        known = ", ".join([AUTO, NONE, *formats])
        raise ModelError(f"{flag} is {quote(name)}; it must be one of: {known}")
    return form
