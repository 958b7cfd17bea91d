"""How a request body is read: JSON, then its fields, and nothing that nobody reads.

A body is a pydantic class, and the one list of what its endpoint takes: the OpenAPI document and
its page are made of its types, its defaults and the line below each field. Types are strict: "0.5"
is not a number. Ranges are `gateway.ranges`'.

    null                      as if the field were not there
    a field in `unserved`     one that clients know from other servers: refused by name, unless its
                              value asks for what happens anyway
    another unknown field     refused by name: a misspelt one would change nothing, and nobody
                              would notice
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from gateway.errors import (
    Fault,
    RequestError,
    invalid,
    missing,
    not_supported,
    one_of,
    quote,
    quote_field,
    wrong,
)
from gateway.nesting import is_deeper

MAX_BODY_DEPTH = 128


class Part(BaseModel):
    """An object within a body."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, said: Any) -> Any:
        if not isinstance(said, dict) or None not in said.values():
            return said
        return {name: value for name, value in said.items() if value is not None}


class Body(Part):
    """What an endpoint reads."""

    unserved: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Fields that would change the answer in a way that is not served: the values that ask for
    nothing."""


Read = TypeVar("Read", bound=BaseModel)

_EXPECTED = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_EXPECTED_OF_FIELD = {
    "early_stopping": 'true, false or "never"',
    "stop": "a string or an array of strings",
}
_SAME = (
    # what endpoints and clients call the same thing
    ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"),
    ("stop", "stop_sequences"),
    ("messages", "prompt", "input"),
    ("system", "instructions"),
    ("response_format", "text", "output_config"),
)
_NONE: Mapping[str, Sequence[Any]] = MappingProxyType({})
_WORD = re.compile(r"'([^']*)'")


def parse_body(content: bytes, schema: type[Read]) -> Read:
    """Reads a request body. Raises RequestError: not JSON, or a field that is unknown, not served,
    missing or of a wrong type."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise RequestError(Fault.INVALID, f"the body is {quote(value)}; it must be a JSON object")
    said = {name: each for name, each in value.items() if each is not None}
    unserved = schema.unserved if issubclass(schema, Body) else {}
    for name in said.keys() & unserved.keys():
        _check_unserved(name, said.pop(name), unserved[name])
    try:
        return schema.model_validate(said)
    except ValidationError as error:
        raise _wrong_body(error.errors(include_url=False)[0], schema) from error


def refuse_extra(
    body: BaseModel,
    prefix: str,
    unserved: Mapping[str, Sequence[Any]],
    unread: Collection[str] = (),
) -> None:
    """Raises RequestError if a part has fields beside its own: but for those that change nothing,
    which are `unread`, and those in `unserved` whose values ask for nothing."""
    if body.model_extra:
        known = [*type(body).model_fields, *unread]
        refuse_unknown(body.model_extra, known, prefix, unserved)


def refuse_unknown(
    said: Mapping[str, Any],
    known: Collection[str],
    prefix: str,
    unserved: Mapping[str, Sequence[Any]] = _NONE,
) -> None:
    """The same for a part that is read by hand, and may say these fields."""
    for name, value in said.items():
        if value is None or name in known:
            continue
        if name not in unserved:
            raise _unknown(prefix + quote_field(name), known, prefix)
        _check_unserved(prefix + name, value, unserved[name])


def checked_text(field: str, text: str) -> str:
    """The text itself. Raises RequestError: JSON can write half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(
            field, f"{field} has a lone surrogate at character {error.start}; it must be Unicode"
        ) from error
    return text


def parse_json(content: bytes) -> Any:
    """The value a body is. Raises RequestError: not JSON."""
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _not_json("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _not_json("it is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise _not_json("it has a number of too many digits") from error
    if is_deeper(value, MAX_BODY_DEPTH):
        raise _not_json(f"it is nested too deeply; it must be at most {MAX_BODY_DEPTH} deep")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _not_json(f"{name} is not a JSON number")


def _not_json(reason: str) -> RequestError:
    return RequestError(Fault.INVALID, f"the body is not valid JSON: {reason}")


def _check_unserved(field: str, value: Any, nothing: Sequence[Any]) -> None:
    if value not in nothing:
        raise not_supported(field, value)


def _unknown(field: str, names: Collection[str], prefix: str = "") -> RequestError:
    """Of a field that the endpoint does not have; after `prefix` it has `names`."""
    said = field.removeprefix(prefix)
    same = next((names_of_it for names_of_it in _SAME if said in names_of_it), ())
    near = [name for name in same if name in names] or get_close_matches(said, names, 1, 0.7)
    hint = f"; did you mean {prefix}{near[0]}?" if near else ""
    return RequestError(
        Fault.UNKNOWN_FIELD, f"{field} is not a field of this endpoint{hint}", field=field
    )


def _wrong_body(details: ErrorDetails, schema: type[BaseModel]) -> RequestError:
    field = ""
    expected = _expected(details)
    for step in details["loc"]:
        if isinstance(step, int):
            field += f"[{step}]"
        elif step == "str":
            expected = "a string or an array"  # the first member of a union
            break
        else:
            name = quote_field(step)
            field += f".{name}" if field else name
        if field in _EXPECTED_OF_FIELD:
            expected = _EXPECTED_OF_FIELD[field]
            break  # what follows names members of a union
    if details["type"] == "extra_forbidden":
        name = quote_field(str(details["loc"][-1]))
        return _unknown(field, _names_at(schema, details["loc"][:-1]), field.removesuffix(name))
    if details["type"] == "missing":
        return missing(field)
    return wrong(field, details["input"], expected)


def _names_at(schema: type[BaseModel], path: Sequence[int | str]) -> Collection[str]:
    """The fields of a part of a body."""
    for step in path:
        if isinstance(step, str) and step in schema.model_fields:
            schema = _part_in(schema.model_fields[step].annotation) or schema
    return schema.model_fields


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """The part that a field is, or has several of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_part_in, get_args(annotation))), None)


def _expected(details: ErrorDetails) -> str:
    """What a value of a wrong type must be."""
    if details["type"] != "literal_error":
        return _EXPECTED.get(details["type"], details["msg"])
    said = details["ctx"]["expected"]
    words = _WORD.findall(said)
    if not words:
        return str(said).lower()  # "False"
    return quote(words[0]) if len(words) == 1 else one_of(words)
