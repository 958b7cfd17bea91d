"""What a model may write when it must call a tool: a grammar for each format.

In llguidance's Lark. The arguments follow the tool's own schema, spaced as the models were trained
to write them. A model may think first, where it does that at all.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gateway.conversation import Tool
from gateway.errors import invalid
from gateway.grammar import GrammarKind, GrammarSpec
from gateway.parsing.formats import CallFormat, Thoughts

Token = Callable[[str], int | None]
"""The special token written so, if the vocabulary has one."""

_SPACING = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def required_calls(
    form: CallFormat,
    tools: Sequence[Tool],
    token: Token,
    *,
    several: bool,
    thoughts: Thoughts | None,
    starts_thinking: bool,
    tools_field: str = "tools",
) -> GrammarSpec:
    """The language of answers that are calls of these tools; `several` of them or one."""
    rules: list[str] = []
    names = []
    for index, tool in enumerate(tools):
        names.append(f"call_{index}")
        rules += _RULES[form.name](f"{index}", tool, f"{tools_field}[{index}]", token)
    call = f"({' | '.join(names)})"
    begin, between, end = _around(form, token)
    more = f" ({between} {call})*" if several else ""
    start = " ".join(filter(None, [begin, f"{call}{more}", end]))
    if thoughts is not None:
        start = _thinking_first(start, thoughts, token, rules, starts_thinking)
    text = "\n".join([f"start: {start}", *rules])
    return GrammarSpec(GrammarKind.LARK, f"{text}\n", tools_field, has_tokens=True)


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
    opening = _text(f'{{"name": {json.dumps(tool.name)}, "parameters": ')
    yield f"call_{index}: {opening} arguments_{index} {_text('}')}"
    yield f"arguments_{index}: {_json(tool.parameters)}"


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


def _thinking_first(
    start: str, thoughts: Thoughts, token: Token, rules: list[str], starts_thinking: bool
) -> str:
    """Thoughts may come before, and do if they have begun already."""
    end = token(thoughts.end)
    if end is None:
        escaped = json.dumps(thoughts.end)[1:-1]
        for character in "/[]":
            escaped = escaped.replace(character, f"\\{character}")
        rules.append(f"thoughts[lazy]: /(?s:.*){escaped}/")
    else:
        rules.append(f"thoughts: /(?s:.*)/ <[{end}]>")
    space = r"/[ \n]{1,4}/?"
    if starts_thinking:
        return f"thoughts {space} {start}"
    return f"({_word(thoughts.begin, token)} thoughts {space})? {start}"


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
