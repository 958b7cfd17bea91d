"""What a model may write where that is bound: calls that must come, and what has a form.

In llguidance's Lark. The arguments follow the tool's own schema, spaced as the models were trained
to write them. Where a model thinks, it may do so first, whatever comes then.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.conversation import Tool
from gateway.errors import invalid
from gateway.grammar import GrammarKind, GrammarSpec, as_rule, json_rule
from gateway.limits import DEFAULT_LIMITS, RequestLimits
from gateway.parsing.formats import CallFormat, Thoughts

Token = Callable[[str], int | None]
"""The special token written so, if the vocabulary has one."""

_SPACING = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """How long a model may think: so many tokens, and then its thoughts are ended for it.

    Counted in tokens, so their begin and end must be single ones; a model that would spell them out
    in several is not seen to think.
    """

    max_tokens: int
    begin: int
    end: int
    """Token ids."""
    field: str
    """Where the client said it."""


def answer_grammar(
    *,
    content: GrammarSpec | None,
    form: CallFormat | None,
    tools: Sequence[Tool],
    several: bool,
    thoughts: Thoughts | None,
    starts_thinking: bool,
    token: Token,
    tools_field: str = "tools",
    limits: RequestLimits = DEFAULT_LIMITS,
    thought_limit: ThoughtLimit | None = None,
) -> GrammarSpec:
    """The language of whole answers: perhaps thoughts, and then either calls of these tools
    (`several` of them or one) or what the client wants the content to be.

    Without `content` it must be calls, without tools it cannot be; without either it is anything,
    and `thought_limit` is all that binds it. Raises RequestError.
    """
    rules: list[str] = []
    ways: list[str] = []
    if form is not None and tools:
        ways.append("calls")
        rules += _calls(form, tools, several, token, tools_field)
    if content is not None:
        ways.append("content")
        rules.append(f"content: {as_rule(content, limits)}")
    start = f"({' | '.join(ways)})"
    if thought_limit is not None:
        limit = thought_limit
        rules.append(f"thoughts: <[^{limit.end}]>{{0,{limit.max_tokens}}} <[{limit.end}]>")
        if ways:
            start = rf"/[ \n]{{1,4}}/? {start}"
        else:
            start = f"<[^{limit.begin}]>*"
        thought = "thoughts" if starts_thinking else f"(<[{limit.begin}]> thoughts)?"
        start = f"{thought} {start}"
    elif thoughts is not None:
        rules.append(_thoughts(thoughts, token))
        before = r"thoughts /[ \n]{1,4}/?"
        if not starts_thinking:
            before = f"({_word(thoughts.begin, token)} {before})?"
        start = f"{before} {start}"
    text = "\n".join([f"start: {start}", *rules])
    field = tools_field if content is None else content.field
    if thought_limit is not None and not ways:
        field = thought_limit.field
    return GrammarSpec(GrammarKind.LARK, f"{text}\n", field, has_tokens=True)


def _calls(
    form: CallFormat, tools: Sequence[Tool], several: bool, token: Token, tools_field: str
) -> Iterator[str]:
    """The rules of calls, the first of which is `calls`."""
    begin, between, end = _around(form, token)
    call = f"({' | '.join([f'call_{index}' for index in range(len(tools))])})"
    more = f"({between} {call})*" if several else ""
    yield f"calls: {' '.join(filter(None, [begin, call, more, end]))}"
    for index, tool in enumerate(tools):
        yield from _RULES[form.name](f"{index}", tool, f"{tools_field}[{index}]", token)


def _around(form: CallFormat, token: Token) -> tuple[str, str, str]:
    """What stands before the first call, between two, and after the last."""
    match form.name:
        case "hermes":
            return "", _text("\n"), ""
        case "llama3_json":
            return "", _text("; "), ""
        case "pythonic":
            return _text("["), _text(", "), _text("]")
        case _ if token("[ARGS]") is not None:
            return "", "", ""
        case _:
            return f"{_word('[TOOL_CALLS]', token)} {_text('[')}", _text(", "), _text("]")


def _hermes(index: str, tool: Tool, field: str, token: Token) -> Iterator[str]:
    begin, end = _word("<tool_call>", token), _word("</tool_call>", token)
    opening = _text(f'\n{{"name": {json.dumps(tool.name)}, "arguments": ')
    closing = _text("}\n")
    yield f"call_{index}: {begin} {opening} arguments_{index} {closing} {end}"
    yield f"arguments_{index}: {_json(tool.parameters)}"


def _llama(index: str, tool: Tool, field: str, token: Token) -> Iterator[str]:
    """As one JSON value: beside JSON content a call's first words must not be text of another kind,
    since llguidance reads the longest."""
    call = {
        "type": "object",
        "properties": {
            "name": {"const": tool.name},
            "parameters": _moved(tool.parameters or _ANY_OBJECT, "/properties/parameters"),
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


def _mistral(index: str, tool: Tool, field: str, token: Token) -> Iterator[str]:
    if token("[ARGS]") is None:
        opening = _text(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        yield f"call_{index}: {opening} arguments_{index} {_text('}')}"
    else:
        begin, between = _word("[TOOL_CALLS]", token), _word("[ARGS]", token)
        yield f"call_{index}: {begin} {_text(tool.name)} {between} arguments_{index}"
    yield f"arguments_{index}: {_json(tool.parameters)}"


def _pythonic(index: str, tool: Tool, field: str, token: Token) -> Iterator[str]:
    """Required arguments, then any of the others, in the schema's order."""
    schema = tool.parameters or _ANY_OBJECT
    properties = schema.get("properties", {})
    if any(word in schema for word in ("$ref", "anyOf", "oneOf", "allOf")) or not isinstance(
        properties, Mapping
    ):
        raise invalid(
            field,
            f"{field} has parameters without properties of their own; "
            "this model's calls cannot be enforced for it",
        )
    required = [name for name in schema.get("required", ()) if name in properties]
    names = [*required, *(name for name in properties if name not in required)]
    shared = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
    for number, name in enumerate(names):
        if not name.isidentifier():
            raise invalid(
                field,
                f"{field} has a parameter whose name is no identifier; "
                "this model's calls cannot be enforced for it",
            )
        value = properties[name]
        value = {**shared, **value} if isinstance(value, Mapping) else value
        yield f"value_{index}_{number}: {_text(f'{name}=')} {_json(value)}"
        optional = "" if number < len(required) else " | "
        yield (
            f"more_{index}_{number}: ({_text(', ')} value_{index}_{number}{optional}) "
            f"more_{index}_{number + 1}"
        )
    yield f'more_{index}_{len(names)}: ""'
    if required:
        inside = f"value_{index}_0 more_{index}_1"
    else:
        firsts = [f"value_{index}_{n} more_{index}_{n + 1}" for n in range(len(names))]
        inside = f"({' | '.join([*firsts, _EMPTY])})"
    yield f"call_{index}: {_text(f'{tool.name}(')} {inside} {_text(')')}"


_EMPTY = '""'
_RULES = {
    "hermes": _hermes,
    "llama3_json": _llama,
    "mistral": _mistral,
    "pythonic": _pythonic,
}


def _thoughts(thoughts: Thoughts, token: Token) -> str:
    """The rule of thoughts, with their end."""
    end = token(thoughts.end)
    if end is not None:
        return f"thoughts: /(?s:.*)/ <[{end}]>"
    escaped = thoughts.end
    for character in "/[]":
        escaped = escaped.replace(character, f"\\{character}")
    return f"thoughts[lazy]: /(?s:.*){escaped}/"


def _word(text: str, token: Token) -> str:
    """A word of the format: one special token, or text."""
    number = token(text)
    return _text(text) if number is None else f"<[{number}]>"


def _text(text: str) -> str:
    return json.dumps(text)


def _json(schema: Any) -> str:
    """A value that a schema accepts."""
    if isinstance(schema, Mapping):
        schema = {**schema, **_SPACING}
    return f"%json {json.dumps(_ANY_OBJECT if schema is None else schema)}"
