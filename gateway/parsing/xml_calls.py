"""Calls written in tags, one for each argument:

    <tool_call>
    <function=f>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

What an argument is depends on its schema: the text "3" is a text where a text belongs, and else a
number. Arguments that are texts are passed on as they come.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from gateway.parsing.json_calls import MAX_NAME_CHARACTERS, checked_name, read_object
from gateway.parsing.object_rules import ANY, type_of, types_of
from gateway.parsing.python_calls import literal
from gateway.parsing.reader import Markers, Reader, Schemas, Steps
from gateway.parsing.xml_rules import END, is_text

_NAME = re.compile(r"[A-Za-z0-9_.:/-]")
_ARGUMENT = re.compile(r"[^>\r\n]")
_ENDS = Markers((f"\n{END}", END))
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


def read_xml_call(reader: Reader, marker: str, known: Schemas) -> Steps[None]:
    """Takes one call from after its marker, which is held. Raises NotACall, with what is not part
    of a call held."""
    if marker != "<function=":
        yield from reader.skip_space()
        yield from reader.expect("<function=")
    name = yield from reader.run_of(_NAME, MAX_NAME_CHARACTERS)
    checked_name(name, known if marker == "<function=" else None)
    yield from reader.expect(">")
    reader.begin_call(name)
    schema = known.get(name)
    between = "{"
    while True:
        reader.hold()
        yield from reader.skip_space()
        if not (yield from reader.accept("<parameter=")):
            break
        argument = yield from reader.run_of(_ARGUMENT, MAX_NAME_CHARACTERS)
        if reader.ended_within(">"):
            break
        yield from reader.expect(">")
        reader.commit()
        reader.say_arguments(f"{between}{json.dumps(argument, ensure_ascii=False)}: ")
        between = ", "
        yield from reader.accept("\n")
        if not (yield from _value(reader, _types(schema, argument))):
            return
    if reader.ended_within("<parameter="):
        yield from reader.until(Markers(()), lambda _: None)
        return  # cut off: nobody knows whether these are all of its arguments
    reader.say_arguments("{}" if between == "{" else "}")
    yield from reader.accept("</function>")
    reader.commit()
    reader.hold()
    yield from reader.skip_space()
    yield from reader.accept("</tool_call>")


def _types(schema: Mapping[str, Any] | None, argument: str) -> frozenset[str]:
    properties = (schema or {}).get("properties")
    if not isinstance(properties, Mapping) or argument not in properties:
        return ANY
    assert schema is not None
    return types_of(properties[argument], schema)


def _value(reader: Reader, types: frozenset[str]) -> Steps[bool]:
    """Takes a value with its closing tag, and tells it; whether it was closed."""
    if types == {"string"}:
        reader.say_arguments('"')
        closed = yield from reader.until(_ENDS, lambda text: reader.say_arguments(_inside(text)))
        if closed:
            reader.say_arguments('"')
        return closed
    pieces: list[str] = []
    if reader.exact and (yield from reader.peek()) in ("{", "["):
        yield from read_object(reader, pieces.append)
    if not (yield from reader.until(_ENDS, pieces.append)):
        return False
    reader.say_arguments(as_json("".join(pieces), types))
    return True


def as_json(text: str, types: frozenset[str]) -> str:
    """What was written for a value of these types, as JSON; a text, if it is none of them."""
    if "null" in types and text.strip() in ("null", "None"):
        return "null"
    if is_text(types):
        return _quoted(text)
    value = _CONSTANTS.get(text.strip(), text.strip())
    for read in (_json, literal):
        written = read(value)
        if written is not None and ("string" not in types or type_of(json.loads(written)) & types):
            return written
    return _quoted(text)


def _json(text: str) -> str | None:
    try:
        json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return None
    return text


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _inside(text: str) -> str:
    return _quoted(text)[1:-1]
