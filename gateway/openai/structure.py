"""The fields by which a client says what its answer must look like.

    response_format       OpenAI's: text, json_object, json_schema
    structured_outputs    vLLM's: json, regex, choice, grammar or json_object
    guided_*              vLLM's older names for the same

At most one of them; all become a `GrammarSpec`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from gateway.errors import invalid, quote
from gateway.grammar import ANY_OBJECT, GrammarKind, GrammarSpec, checked_schema

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StructuredBody(BaseModel):
    """What bodies say of it."""

    model_config = ConfigDict(strict=True, extra="allow")

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


def requested_grammar(body: StructuredBody) -> GrammarSpec | None:
    """The one that the body asks for; None: any answer will do. Raises RequestError."""
    specs = [_response_format("response_format", body.response_format)]
    specs += _structured_outputs("structured_outputs", body.structured_outputs)
    specs += [
        _KINDS[name](f"guided_{name}", getattr(body, f"guided_{name}"))
        for name in ("json", "regex", "choice", "grammar")
        if getattr(body, f"guided_{name}") not in _NOTHING
    ]
    said = [spec for spec in specs if spec is not None]
    if len(said) > 1:
        raise invalid(
            said[1].field,
            f"{said[1].field} and {said[0].field} are both given; there may be at most one of them",
        )
    return said[0] if said else None


def _response_format(field: str, value: Mapping[str, Any] | None) -> GrammarSpec | None:
    if value is None:
        return None
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return GrammarSpec.json_schema(ANY_OBJECT, field)
        case "json_schema":
            return named_schema(f"{field}.json_schema", value.get("json_schema"))
        case other:
            raise invalid(
                f"{field}.type",
                f"{field}.type is {quote(other)}; it must be one of text, json_object, json_schema",
            )


def named_schema(field: str, value: object) -> GrammarSpec:
    """OpenAI's {name, description, schema, strict}; always kept to, strict or not.

    Raises RequestError.
    """
    if not isinstance(value, dict):
        raise invalid(field, f"{field} is {quote(value)}; it must be an object")
    name = value.get("name")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise invalid(
            f"{field}.name",
            f"{field}.name is {quote(name)}; it must be 1 to 64 letters, digits, '-' or '_'",
        )
    for key, kind, expected in (
        ("strict", bool, "true or false"),
        ("description", str, "a string"),
    ):
        said = value.get(key)
        if said is not None and not isinstance(said, kind):
            raise invalid(
                f"{field}.{key}", f"{field}.{key} is {quote(said)}; it must be {expected}"
            )
    schema = value.get("schema")
    if schema is None:
        return GrammarSpec.json_schema(ANY_OBJECT, field)
    if not isinstance(schema, dict):
        raise invalid(f"{field}.schema", f"{field}.schema is {quote(schema)}; it must be an object")
    return GrammarSpec.json_schema(schema, f"{field}.schema")


def _structured_outputs(field: str, value: Mapping[str, Any] | None) -> list[GrammarSpec | None]:
    specs: list[GrammarSpec | None] = []
    for name, said in (value or {}).items():
        if said in _NOTHING:
            continue
        if name not in _KINDS:
            raise invalid(
                f"{field}.{name}",
                f"{field}.{name} is {quote(said)}; it is not supported by this server",
            )
        specs.append(_KINDS[name](f"{field}.{name}", said))
    return specs


def _object(field: str, value: object) -> GrammarSpec:
    if value is not True:
        raise invalid(field, f"{field} is {quote(value)}; it must be true or false")
    return GrammarSpec.json_schema(ANY_OBJECT, field)


def _regex(field: str, value: object) -> GrammarSpec:
    return GrammarSpec(GrammarKind.REGEX, _string(field, value), field)


def _lark(field: str, value: object) -> GrammarSpec:
    return GrammarSpec(GrammarKind.LARK, _string(field, value), field)


def _choice(field: str, value: object) -> GrammarSpec:
    if not isinstance(value, list):
        raise invalid(field, f"{field} is {quote(value)}; it must be an array of strings")
    return GrammarSpec.choice([_string(field, text) for text in value], field)


def _string(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise invalid(field, f"{field} has {quote(value)}; it must be a string")
    return value


def _schema(field: str, value: object) -> GrammarSpec:
    return checked_schema(value, field)


_NOTHING: tuple[Any, ...] = (None, False, "")

_KINDS: Mapping[str, Callable[[str, object], GrammarSpec]] = {
    "json": _schema,
    "json_object": _object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
}
