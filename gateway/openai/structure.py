"""The fields by which a client says what its answer must look like.

    response_format       OpenAI's: text, json_object, json_schema; of a response: text.format
    structured_outputs    vLLM's: json, regex, choice, grammar or json_object
    guided_*              vLLM's older names for the same

At most one of them; all become a `GrammarSpec`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import WithJsonSchema

from gateway.body import Body, refuse_unknown
from gateway.errors import invalid, not_supported, one_of, wrong
from gateway.gbnf import is_gbnf
from gateway.grammar import ANY_OBJECT, GrammarKind, GrammarSpec, checked_schema
from gateway.openai import shapes

_NAMED_SCHEMA = ("name", "description", "schema", "strict")
_UNSERVED = (
    # vLLM's
    *("structural_tag", "whitespace_pattern", "disable_fallback", "disable_any_whitespace"),
    "disable_additional_properties",
)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class GuidedBody(Body):
    """vLLM's words for it."""

    structured_outputs: Annotated[
        dict[str, Any] | None, WithJsonSchema(shapes.STRUCTURED_OUTPUTS)
    ] = None
    """What the answer must be: one of a JSON schema, a JSON object, a regex, a choice of texts or
    a grammar, in Lark (`start: "a" | "b"`) or in GBNF (`root ::= "a" | "b"`)."""
    guided_json: Annotated[Any, WithJsonSchema({"type": ["object", "boolean", "string"]})] = None
    """The older name of `structured_outputs.json`."""
    guided_regex: str | None = None
    """The older name of `structured_outputs.regex`."""
    guided_choice: list[str] | None = None
    """The older name of `structured_outputs.choice`."""
    guided_grammar: str | None = None
    """The older name of `structured_outputs.grammar`."""


class StructuredBody(GuidedBody):
    """And OpenAI's."""

    response_format: Annotated[dict[str, Any] | None, WithJsonSchema(shapes.RESPONSE_FORMAT)] = None
    """What the answer must be: text, a JSON object, or what a JSON schema describes."""


def requested_grammar(body: GuidedBody) -> GrammarSpec | None:
    """The one that the body asks for; None: any answer will do. Raises RequestError."""
    specs = _structured_outputs("structured_outputs", body.structured_outputs)
    specs += [
        _KINDS[name](f"guided_{name}", getattr(body, f"guided_{name}"))
        for name in ("json", "regex", "choice", "grammar")
        if not _is_nothing(getattr(body, f"guided_{name}"))
    ]
    if isinstance(body, StructuredBody):
        specs.insert(0, format_grammar("response_format", body.response_format))
    said = [spec for spec in specs if spec is not None]
    if len(said) > 1:
        raise invalid(
            said[1].field,
            f"{said[1].field} and {said[0].field} are both given; there may be at most one of them",
        )
    return said[0] if said else None


def format_grammar(
    field: str, value: Mapping[str, Any] | None, *, beside_type: bool = False
) -> GrammarSpec | None:
    """What a format asks for; None: text. `beside_type`: a named schema's fields stand beside the
    type, as responses have them. Raises RequestError."""
    if value is None:
        return None
    more = {name: said for name, said in value.items() if name != "type"}
    match value.get("type"):
        case "text":
            refuse_unknown(more, (), f"{field}.")
            return None
        case "json_object":
            refuse_unknown(more, (), f"{field}.")
            return GrammarSpec.json_schema(ANY_OBJECT, field)
        case "json_schema" if beside_type:
            return _named_schema(field, more)
        case "json_schema":
            refuse_unknown(more, ("json_schema",), f"{field}.")
            return _named_schema(f"{field}.json_schema", more.get("json_schema"))
        case other:
            raise wrong(f"{field}.type", other, one_of(("text", "json_object", "json_schema")))


def _named_schema(field: str, value: object) -> GrammarSpec:
    """OpenAI's {name, description, schema, strict}; always kept to, strict or not."""
    if not isinstance(value, dict):
        raise wrong(field, value, "an object")
    refuse_unknown(value, _NAMED_SCHEMA, f"{field}.")
    name = value.get("name")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise wrong(f"{field}.name", name, "1 to 64 letters, digits, '-' or '_'")
    for key, kind, expected in (
        ("strict", bool, "true or false"),
        ("description", str, "a string"),
    ):
        said = value.get(key)
        if said is not None and not isinstance(said, kind):
            raise wrong(f"{field}.{key}", said, expected)
    schema = value.get("schema")
    if schema is None:
        return GrammarSpec.json_schema(ANY_OBJECT, field)
    if not isinstance(schema, dict):
        raise wrong(f"{field}.schema", schema, "an object")
    return GrammarSpec.json_schema(schema, f"{field}.schema")


def _structured_outputs(field: str, value: Mapping[str, Any] | None) -> list[GrammarSpec | None]:
    specs: list[GrammarSpec | None] = []
    for name, said in (value or {}).items():
        if _is_nothing(said):
            continue
        if name in _UNSERVED:
            raise not_supported(f"{field}.{name}", said)
        refuse_unknown({name: said}, _KINDS.keys(), f"{field}.")
        specs.append(_KINDS[name](f"{field}.{name}", said))
    return specs


def _object(field: str, value: object) -> GrammarSpec:
    if value is not True:
        raise wrong(field, value, "true or false")
    return GrammarSpec.json_schema(ANY_OBJECT, field)


def _regex(field: str, value: object) -> GrammarSpec:
    return GrammarSpec(GrammarKind.REGEX, _string(field, value), field)


def _grammar(field: str, value: object) -> GrammarSpec:
    text = _string(field, value)
    return GrammarSpec(GrammarKind.GBNF if is_gbnf(text) else GrammarKind.LARK, text, field)


def _choice(field: str, value: object) -> GrammarSpec:
    if not isinstance(value, list):
        raise wrong(field, value, "an array of strings")
    return GrammarSpec.choice([_string(field, text) for text in value], field)


def _string(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise wrong(field, value, "a string")
    return value


def _schema(field: str, value: object) -> GrammarSpec:
    return checked_schema(value, field)


def _is_nothing(said: object) -> bool:
    """As clients write out what they do not ask for."""
    return said is None or said is False or said == ""


_KINDS: Mapping[str, Callable[[str, object], GrammarSpec]] = {
    "json": _schema,
    "json_object": _object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
