"""JSON schemas of the fields that are read by hand, for the OpenAPI document."""

from typing import Any

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}


def _object(required: list[str], /, **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TOKENS = _array({"type": "integer"})
TEXTS_OR_TOKENS: Schema = {"anyOf": [_STRING, _array(_STRING), _TOKENS, _array(_TOKENS)]}
"""A prompt or an input, or several."""

CONTENT: Schema = {
    "anyOf": [
        _STRING,
        _array(_object(["type", "text"], type={"const": "text"}, text=_STRING)),
        {"type": "null"},
    ]
}
"""What a message says."""

ROLE: Schema = {"type": "string", "enum": ["developer", "system", "user", "assistant", "tool"]}

_FUNCTION: Schema = {"const": "function"}

CALLS = _array(
    _object(
        ["id", "function"],
        id=_STRING,
        type=_FUNCTION,
        function=_object(["name"], name=_STRING, arguments=_STRING),
    )
)
"""An assistant's calls of tools."""

TOOLS = _array(
    _object(
        ["type", "function"],
        type=_FUNCTION,
        function=_object(
            ["name"],
            name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
            description=_STRING,
            parameters={"type": "object"},
            strict={"type": "boolean"},
        ),
    )
)

TOOL_CHOICE: Schema = {
    "anyOf": [
        {"type": "string", "enum": ["none", "auto", "required"]},
        _object(["type", "function"], type=_FUNCTION, function=_object(["name"], name=_STRING)),
    ]
}

_NAMED_SCHEMA = _object(
    ["name"],
    name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    description=_STRING,
    schema={"type": "object"},
    strict={"type": "boolean"},
)

RESPONSE_FORMAT: Schema = {
    "anyOf": [
        _object(["type"], type={"type": "string", "enum": ["text", "json_object"]}),
        _object(["type", "json_schema"], type={"const": "json_schema"}, json_schema=_NAMED_SCHEMA),
    ]
}

STRUCTURED_OUTPUTS: Schema = {
    "type": "object",
    "properties": {
        "json": {"type": ["object", "boolean", "string"]},
        "json_object": {"type": "boolean"},
        "regex": _STRING,
        "choice": _array(_STRING),
        "grammar": _STRING,
    },
    "additionalProperties": False,
}

TEXT_FORMAT: Schema = {
    "anyOf": [
        _object(["type"], type={"type": "string", "enum": ["text", "json_object"]}),
        {
            **_NAMED_SCHEMA,
            "required": ["type", "name"],
            "properties": {"type": {"const": "json_schema"}, **_NAMED_SCHEMA["properties"]},
        },
    ]
}

RESPONSE_INPUT: Schema = {
    "anyOf": [
        _STRING,
        _array({"type": "object", "properties": {"type": _STRING}}),
    ]
}

RESPONSE_TOOLS = _array(
    _object(
        ["type", "name"],
        type=_FUNCTION,
        name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        description=_STRING,
        parameters={"type": "object"},
        strict={"type": "boolean"},
    )
)

RESPONSE_TOOL_CHOICE: Schema = {
    "anyOf": [
        {"type": "string", "enum": ["none", "auto", "required"]},
        _object(["type", "name"], type=_FUNCTION, name=_STRING),
    ]
}
