"""Calls in tags (`gateway.parsing.xml_calls`) in llguidance's Lark.

    <tool_call>
    <function=f>
    <parameter=city>
    Paris
    </parameter>
    <parameter=days>
    3
    </parameter>
    </function>
    </tool_call>

A text stands there as it is, without quotes: what its schema says becomes a regular expression. Of
other values the JSON does.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gateway.parsing.object_rules import Unenforceable, resolved, says_nothing, types_of

END = "</parameter>"
_NOT_END = r"/(?s:.*)/ & ~/(?s:.*)<\/parameter>(?s:.*)/"
_NULL = frozenset(("null",))
_TEXT = frozenset(("string",))
_OF_TEXTS = frozenset(
    ("type", "enum", "const", "minLength", "maxLength", "pattern", "anyOf", "oneOf")
) | {"$defs", "definitions"}


def is_text(types: frozenset[str]) -> bool:
    """Whether a value of these types is written as it is: a text, or none."""
    return "string" in types and types <= _TEXT | _NULL


def xml_call(
    index: int,
    name: str,
    listed: Sequence[tuple[str, Any, bool]] | None,
    write_json: Callable[[Any], str],
    end: str,
) -> Iterator[str]:
    """The rules of a call, from after its opening tag: with these arguments, as
    `object_rules.members` lists them, or with any. Raises Unenforceable."""
    opening, closing = json.dumps(f"\n<function={name}>\n"), json.dumps("</function>\n")
    if listed is None:
        yield f"VALUE_{index}: ({_NOT_END}) {json.dumps(_closing())}"
        yield f'argument_{index}: "<parameter=" /[^>\\n]{{1,128}}>\\n/ VALUE_{index}'
        yield f"call_{index}: {opening} argument_{index}* {closing} {end}"
        return
    parts = []
    for number, (member, schema, required) in enumerate(listed):
        if not member or any(letter in member for letter in ">\r\n"):
            raise Unenforceable("has a parameter whose name cannot be in a tag")
        value = f"{index}_{number}"
        tag = json.dumps(f"<parameter={member}>\n")
        if is_text(types_of(schema, schema if isinstance(schema, Mapping) else {})):
            yield f"VALUE_{value}: ({_written(schema, schema)}) {json.dumps(_closing())}"
            yield f"argument_{value}: {tag} VALUE_{value}"
        else:
            yield f"argument_{value}: {tag} {write_json(schema)} {json.dumps(_closing())}"
        parts.append(f"argument_{value}{'' if required else '?'}")
    yield f"call_{index}: {' '.join([opening, *parts, closing, end])}"


def _closing() -> str:
    return f"\n{END}\n"


def _written(schema: Any, root: Mapping[str, Any]) -> str:
    """The texts that a schema accepts, and "null" if it accepts that. Raises Unenforceable."""
    schema = resolved(schema, root)
    for keyword in schema:
        if keyword not in _OF_TEXTS and not says_nothing(keyword):
            raise Unenforceable(f'has a parameter with "{keyword}", which is text in a tag')
    branches = [schema[word] for word in ("anyOf", "oneOf") if word in schema]
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    bounds = [word for word in ("minLength", "maxLength", "pattern") if word in schema]
    if bool(branches) + bool(bounds) + (values is not None) > 1:
        raise Unenforceable("has a parameter that is text in a tag and bound in several ways")
    if branches:
        return _one_of_branches(branches[0], "oneOf" in schema, root)
    types = types_of(schema, root)
    if values is not None:
        return " | ".join([_literal(value) for value in values if _accepts(types, value)])
    ways = []
    if "null" in types:
        ways.append('"null"')
    if "string" in types:
        ways.append(f"({' & '.join([_NOT_END, *_bounds(schema)])})")
    return " | ".join(ways)


def _one_of_branches(branches: Sequence[Any], only_one: bool, root: Mapping[str, Any]) -> str:
    texts = [branch for branch in branches if "string" in types_of(branch, root)]
    if only_one and len(texts) > 1:
        raise Unenforceable('has a parameter with "oneOf", which is text in a tag')
    return " | ".join([f"({_written(branch, root)})" for branch in branches])


def _accepts(types: frozenset[str], value: Any) -> bool:
    return ("null" if value is None else "string") in types


def _literal(value: str | None) -> str:
    if value is None:
        return '"null"'
    if END in value:
        raise Unenforceable(f'has a parameter with a value that has "{END}" in it')
    return json.dumps(value)


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if least or most is not None:
        yield f"/(?s:.){{{least},{'' if most is None else most}}}/"
    if "pattern" in schema:
        yield f"/{_whole(schema['pattern'])}/"


def _whole(pattern: str) -> str:
    """A regular expression for all of a text in which `pattern` is found."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$")
    if (begins or ends) and _has_alternatives(pattern):
        raise Unenforceable(
            'has a parameter with a "pattern" of alternatives with ends of their own'
        )
    inner = pattern.removeprefix("^").removesuffix("$")
    inner = inner.replace("\n", r"\n").replace(r"\/", "/").replace("/", r"\/")
    before, after = "" if begins else "(?s:.*)", "" if ends else "(?s:.*)"
    return f"{before}({inner}){after}"


def _has_alternatives(pattern: str) -> bool:
    """Whether one of its "|" is in no bracket, as far as can be told."""
    depth = 0
    escaped = False
    for letter in pattern:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == "|" and depth <= 0:
            return True
    return False
