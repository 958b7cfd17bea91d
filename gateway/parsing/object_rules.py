"""The arguments of a call one by one: for formats that do not write them as one JSON object."""

from collections.abc import Iterator, Mapping
from typing import Any

ANY = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
"""All types of JSON. A whole number is an integer and a number."""

_MAX_REFERENCES = 16
_SAYS_NOTHING = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly")
) | {"writeOnly", "strict", "$comment", "$schema", "$id"}
_OF_OBJECTS = frozenset(
    ["type", "properties", "required", "additionalProperties", "$defs", "definitions"]
)
_OF_VALUES: Mapping[type, tuple[str, ...]] = {
    type(None): ("null",),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    str: ("string",),
    list: ("array",),
    dict: ("object",),
}


class Unenforceable(Exception):
    """Why a schema's arguments cannot be written one by one."""


def members(schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Name, schema and whether it must be there, of each of an object's members; those that must
    come first. Each schema has the definitions that it may refer to.

    Raises Unenforceable if there is more to the object than its members.
    """
    for keyword in schema:
        if keyword not in _OF_OBJECTS | _SAYS_NOTHING:
            raise Unenforceable(f'has "{keyword}" beside properties')
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        raise Unenforceable("has properties or required of another type")
    for name in required:
        if not isinstance(name, str) or name not in properties:
            raise Unenforceable(f'requires "{name}", which is not among its properties')
    names = [*required, *(name for name in properties if name not in required)]
    shared = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
    return [
        (name, _with(shared, properties[name]), name in required) for name in dict.fromkeys(names)
    ]


def _with(shared: Mapping[str, Any], schema: Any) -> Any:
    return {**shared, **schema} if isinstance(schema, Mapping) else schema


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema itself in place of what only refers to one within `root`.

    Raises Unenforceable if there is none, or more said beside the reference.
    """
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        said = [word for word in schema if word not in _SAYS_NOTHING | {"$defs", "definitions"}]
        if len(said) > 1:
            raise Unenforceable('has a parameter with more than "$ref"')
        schema = _found(schema["$ref"], root)
    raise Unenforceable('has a parameter whose "$ref" does not end')


def _found(reference: Any, root: Any) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise Unenforceable('has a parameter whose "$ref" is not within the schema')
    for step in reference[2:].split("/"):
        if not isinstance(root, Mapping) or step not in root:
            raise Unenforceable(f'has a parameter whose "$ref" is {reference}, which is not there')
        root = root[step]
    return root


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The types of JSON that a schema may accept; all, where that is not said."""
    try:
        return frozenset.intersection(ANY, *_types(schema, root, _MAX_REFERENCES))
    except Unenforceable:
        return ANY


def _types(schema: Any, root: Mapping[str, Any], left: int) -> Iterator[frozenset[str]]:
    """Sets of types, in all of which a value's must be."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or left == 0:
        return
    if "type" in schema:
        said = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        yield frozenset(
            name for name in ANY if name in said or (name == "integer" and "number" in said)
        )
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        yield frozenset(name for value in values for name in _OF_VALUES[type(value)])
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            yield frozenset(
                name
                for branch in schema[word]
                for name in frozenset.intersection(ANY, *_types(branch, root, left - 1))
            )
    if isinstance(schema.get("allOf"), list):
        for branch in schema["allOf"]:
            yield from _types(branch, root, left - 1)


def type_of(value: Any) -> frozenset[str]:
    """The types of a JSON value."""
    if isinstance(value, float) and value.is_integer():
        return frozenset(("integer", "number"))
    return frozenset(_OF_VALUES[type(value)])


def says_nothing(keyword: str) -> bool:
    """Whether a keyword of a schema binds no value."""
    return keyword in _SAYS_NOTHING
