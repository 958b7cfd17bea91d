"""Calls of tools in llguidance's Lark, as each format writes them.

    calls    one or several calls, from the first character of the first to the last of the last
    block    of formats with an opening word: what follows it
    call_N   a call of tool N

A tool that is `held` is called with arguments that its schema accepts, any other with some.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.conversation import Tool
from gateway.errors import RequestError, invalid
from gateway.grammar import (
    ANY_OBJECT,
    GrammarKind,
    GrammarSpec,
    compiled,
    escaped,
    json_rule,
)
from gateway.limits import RequestLimits
from gateway.parsing.formats import CallFormat
from gateway.parsing.object_rules import Unenforceable, members
from gateway.parsing.xml_rules import xml_call

Token = Callable[[str], int | None]
"""The special token written so, if the vocabulary has one."""

SPACE = r"[ \t\r\n]"
_SPACING = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands around and between calls."""

    begin: str = ""
    comma: str | None = None
    """Between the calls of a block; None: each has one of its own."""
    end: str = ""
    gap: str | None = None
    """Between blocks; None: there is only one."""


def layout(form: CallFormat, token: Token) -> Layout:
    """That of a format, which may depend on the vocabulary."""
    match form.name:
        case "hermes" | "qwen3_coder":
            return Layout(gap="\n")
        case "llama3_json":
            return Layout(comma="; ")
        case "pythonic":
            return Layout("[", ", ", "]")
        case _ if token("[ARGS]") is not None:
            return Layout(gap="")
        case _:
            return Layout("[", ", ", "]")


def call_rules(
    form: CallFormat,
    tools: Sequence[Tool],
    held: Collection[Tool],
    several: bool,
    token: Token,
) -> Iterator[str]:
    """The rules of calls. Raises RequestError if a held tool's schema cannot be enforced."""
    around = layout(form, token)
    call = _one_of([f"call_{index}" for index in range(len(tools))])
    more = f"({text(around.comma)} {call})*" if several and around.comma is not None else ""
    yield f"block: {_row(text(around.begin), call, more, text(around.end))}"
    opening = word(form.opening, token)
    again = ""
    if several and around.gap is not None:
        again = f"({_row(text(around.gap), opening, 'block')})*"
    yield f"calls: {_row(opening, 'block', again)}"
    for index, tool in enumerate(tools):
        yield from _CALLS[form.name](index, _Called(tool, tool in held), token)


def headed_rules(
    form: CallFormat, tools: Sequence[Tool], held: Collection[Tool], several: bool, token: Token
) -> Iterator[str]:
    """The rule `headed`: calls in a format that has no opening word, told from text by the first of
    them up to the tool's name. Raises RequestError."""
    around = layout(form, token)
    assert around.comma is not None
    calls = []
    for index, tool in enumerate(tools):
        calls.append(f"next_{index}")
        yield f"HEAD_{index}: /{head(form, [tool])}/"
        yield f"first_{index}: HEAD_{index} rest_{index}"
        yield f"next_{index}: {text(_HEADS[form.name].again(tool.name))} rest_{index}"
        yield from _RESTS[form.name](index, _Called(tool, tool in held))
    firsts = _one_of([f"first_{index}" for index in range(len(tools))])
    more = f"({text(around.comma)} {_one_of(calls)})*" if several else ""
    yield f"headed: {_row(firsts, more, text(around.end))}"


def head(form: CallFormat, tools: Sequence[Tool]) -> str:
    """What the first call of one of these tools begins with, as a regular expression."""
    tags = "|".join([escaped(tag) for tag in form.tokens])
    names = "|".join([escaped(tool.name) for tool in tools])
    around = _HEADS[form.name]
    return f"{SPACE}*(({tags}){SPACE}*)?{around.before}({names}){around.after}"


def why_not(form: CallFormat, tool: Tool, token: Token, limits: RequestLimits) -> str | None:
    """Why the schema of a tool cannot be enforced; None: it can."""
    try:
        rules = "\n".join(["start: calls", *call_rules(form, [tool], [tool], False, token)])
        spec = GrammarSpec(GrammarKind.LARK, f"{rules}\n", tool.field, has_tokens=True)
        compiled(spec, limits)
    except RequestError as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True)
class _Called:
    tool: Tool
    held: bool

    @property
    def schema(self) -> Mapping[str, Any] | None:
        return self.tool.parameters if self.held else None

    @property
    def json(self) -> str:
        return _json(ANY_OBJECT if self.schema is None else self.schema)


def _hermes(index: int, called: _Called, token: Token) -> Iterator[str]:
    opening = text(f'\n{{"name": {json.dumps(called.tool.name)}, "arguments": ')
    closing = _row(text("}\n"), word("</tool_call>", token))
    yield f"call_{index}: {opening} arguments_{index} {closing}"
    yield f"arguments_{index}: {called.json}"


def _llama(index: int, called: _Called, token: Token) -> Iterator[str]:
    """As one JSON value: beside JSON content a call's first words must not be text of another kind,
    since llguidance reads the longest."""
    schema = ANY_OBJECT if called.schema is None else called.schema
    call = {
        "type": "object",
        "properties": {
            "name": {"const": called.tool.name},
            "parameters": _moved(schema, "/properties/parameters"),
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }
    yield f"call_{index}: {json_rule(call)}"


def _moved(schema: Any, path: str) -> Any:
    """A schema as part of another one: what it refers to is further down there."""
    if isinstance(schema, list):
        return [_moved(part, path) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: _moved(part, path) for name, part in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = f"#{path}{reference[1:]}"
    return moved


def _llama_rest(index: int, called: _Called) -> Iterator[str]:
    opening, closing = text(', "parameters": '), text("}")
    yield f"rest_{index}: {opening} arguments_{index} {closing}"
    yield f"arguments_{index}: {called.json}"


def _mistral(index: int, called: _Called, token: Token) -> Iterator[str]:
    if token("[ARGS]") is None:
        opening = text(f'{{"name": {json.dumps(called.tool.name)}, "arguments": ')
        yield f"call_{index}: {opening} arguments_{index} {text('}')}"
    else:
        yield f"call_{index}: {text(called.tool.name)} {word('[ARGS]', token)} arguments_{index}"
    yield f"arguments_{index}: {called.json}"


def _pythonic(index: int, called: _Called, token: Token) -> Iterator[str]:
    yield f"call_{index}: {text(f'{called.tool.name}(')} rest_{index}"
    yield from _pythonic_rest(index, called)


def _pythonic_rest(index: int, called: _Called) -> Iterator[str]:
    """Required arguments, then any of the others, in the schema's order."""
    if called.schema is None:
        value = f"/[A-Za-z_][A-Za-z0-9_]{{0,63}}=/ {_json({})}"
        yield f"some_{index}: {value}"
        inside = f"(some_{index} ({text(', ')} some_{index})*)?"
        yield f"rest_{index}: {inside} {text(')')}"
        return
    listed = _held_members(called)
    for number, (name, value, _) in enumerate(listed):
        if not name.isidentifier():
            raise _refused(called.tool, "has a parameter whose name is no identifier")
        yield f"value_{index}_{number}: {text(f'{name}=')} {_json(value)}"
    num_required = sum(required for _, _, required in listed)
    for number in range(1, len(listed)):
        optional = "" if number < num_required else " | "
        yield (
            f"more_{index}_{number}: ({text(', ')} value_{index}_{number}{optional}) "
            f"more_{index}_{number + 1}"
        )
    yield f'more_{index}_{len(listed)}: ""'
    firsts = [f"value_{index}_{n} more_{index}_{n + 1}" for n in range(len(listed))]
    inside = firsts[0] if num_required else f"({' | '.join([*firsts, _EMPTY])})"
    yield f"rest_{index}: {inside} {text(')')}"


def _xml(index: int, called: _Called, token: Token) -> Iterator[str]:
    listed = None if called.schema is None else _held_members(called)
    try:
        yield from xml_call(index, called.tool.name, listed, _json, word("</tool_call>", token))
    except Unenforceable as error:
        raise _refused(called.tool, str(error)) from error


def _held_members(called: _Called) -> list[tuple[str, Any, bool]]:
    try:
        return members(called.schema or {})
    except Unenforceable as error:
        raise _refused(called.tool, str(error)) from error


def _refused(tool: Tool, reason: str) -> RequestError:
    return invalid(
        tool.field, f"{tool.field} {reason}; this model's calls cannot be enforced for it"
    )


_EMPTY = '""'
_CALLS: Mapping[str, Callable[[int, _Called, Token], Iterator[str]]] = {
    "hermes": _hermes,
    "llama3_json": _llama,
    "mistral": _mistral,
    "pythonic": _pythonic,
    "qwen3_coder": _xml,
}
_RESTS: Mapping[str, Callable[[int, _Called], Iterator[str]]] = {
    "llama3_json": _llama_rest,
    "pythonic": _pythonic_rest,
}


@dataclass(frozen=True, slots=True)
class _Head:
    """How a call begins, up to the end of its name, for which there is a place."""

    before: str
    """The name, in the first call: a regular expression for every way that is read as one."""
    after: str
    again: Callable[[str], str]
    """As the next calls are written."""


_HEADS = {
    "llama3_json": _Head(
        rf'\{{{SPACE}*"name"{SPACE}*:{SPACE}*"', '"', lambda name: f'{{"name": "{name}"'
    ),
    "pythonic": _Head(rf"\[{SPACE}*", r"\(", lambda name: f"{name}("),
}


def word(said: str, token: Token) -> str:
    """A word of the format: one special token, or text."""
    number = token(said)
    return text(said) if number is None else f"<[{number}]>"


def text(said: str | None) -> str:
    """A text as it is; nothing, if there is none."""
    return json.dumps(said) if said else ""


def _row(*parts: str) -> str:
    return " ".join(filter(None, parts)) or _EMPTY


def _one_of(ways: Sequence[str]) -> str:
    return f"({' | '.join(ways)})"


def _json(schema: Any) -> str:
    """A value that a schema accepts."""
    if isinstance(schema, Mapping):
        schema = {**schema, **_SPACING}
    return f"%json {json.dumps(schema)}"
