"""The OpenAPI document of this server: made of its endpoints and of the classes that read bodies,
so that it cannot say another. Defaults are those of the served model, limits the operator's.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.errors import Fault
from gateway.model import Model
from gateway.openai.answers import MAY_BE_NULL
from gateway.openai.errors import ERROR_KINDS
from gateway.ranges import MAX_TIMEOUT_S
from router.caller import TENANT, TENANT_PATTERN, TIMEOUT
from router.endpoints import Endpoint
from router.middleware import BROWSER_PATHS, OPEN_PATHS
from router.request_schemas import completed
from router.responses import ANTHROPIC_PATH

Schema = dict[str, Any]

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_REF = "#/components/schemas/{model}"

_OF_PATHS = {
    "/ready": (Fault.UNAVAILABLE, Fault.UNAUTHENTICATED),
    "/v1/models/{name:model}": (Fault.UNKNOWN_MODEL,),
    "/v1/responses/{response_id}": (Fault.UNKNOWN_RESPONSE,),
    "/v1/responses/{response_id}/input_items": (Fault.UNKNOWN_RESPONSE,),
    "/v1/responses/{response_id}/cancel": (Fault.UNKNOWN_RESPONSE, Fault.INVALID),
}
_OF_BODIES = (
    Fault.INVALID,
    Fault.UNKNOWN_MODEL,
    Fault.BODY_TOO_SLOW,
    Fault.BODY_TOO_LARGE,
    Fault.WRONG_CONTENT_TYPE,
    Fault.OVERLOADED,
    Fault.UNAVAILABLE,
)
_HEADERS = (
    # of what is computed
    {
        "name": TIMEOUT,
        "description": "Seconds after which the answer must be complete, like the field `timeout`; "
        "the sooner counts.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
    },
    {
        "name": TENANT,
        "description": "On whose behalf: tenants get even shares of what is computed. Where a key "
        "is asked for, its name is the tenant.",
        "schema": {"type": "string", "pattern": f"^{TENANT_PATTERN}$"},
    },
)
_MEANINGS = {
    # what else a status says than its code
    400: "the request is wrong",
    500: "the server failed",
}

_CODES = sorted({kind.code for kind in ERROR_KINDS.values() if kind.code is not None})
_TYPES = sorted({kind.type for kind in ERROR_KINDS.values()})

_ERRORS: dict[str, Schema] = {
    # name: its schema
    "Error": {
        "description": "What every error is; in a stream it is the last event.",
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "description": "What is wrong.",
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {
                        "type": "string",
                        "description": "What is wrong, with the field, the limit and the value.",
                    },
                    "type": {
                        "type": "string",
                        "enum": _TYPES,
                        "description": "Whose fault it is.",
                    },
                    "param": {
                        "type": ["string", "null"],
                        "description": "The field that is wrong, if it is one.",
                    },
                    "code": {
                        "anyOf": [{"type": "string", "enum": _CODES}, {"type": "null"}],
                        "description": "Which kind of error.",
                    },
                },
            }
        },
    },
    "AnthropicError": {
        "description": f"What every error of {ANTHROPIC_PATH} is.",
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error", "description": "Always."},
            "error": {
                "description": "What is wrong.",
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
            "request_id": {"type": "string", "description": "Of the request that went wrong."},
        },
    },
}


def document(
    endpoints: Sequence[Endpoint],
    version: str,
    model: Model,
    max_model_len: int | None,
    *,
    needs_key: bool,
) -> dict[str, Any]:
    """The document, as JSON. `needs_key`: whether clients must send one."""
    schemas, names = _schemas(endpoints)
    for body in {body for endpoint in endpoints for body in endpoint.body}:
        completed(schemas[names[body]], model, max_model_len)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = _PARAMETER.sub(r"{\1}", endpoint.path)
        operation = _operation(endpoint, names)
        if needs_key and endpoint.path in OPEN_PATHS:
            operation["security"] = []
        elif needs_key and endpoint.path in BROWSER_PATHS:
            operation["security"] = [{"bearer": []}, {"x-api-key": []}, {"basic": []}]
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    told: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Quire",
            "version": version,
            "description": "A server of large language models that speaks OpenAI's API, with "
            "vLLM's extra fields, and Anthropic's Messages. Null is the same as a field that is "
            "not there; a field that is not listed is refused.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted((schemas | _ERRORS).items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
    }
    if needs_key:
        told["security"] = [{"bearer": []}, {"x-api-key": []}]
    return told


def _schemas(
    endpoints: Sequence[Endpoint],
) -> tuple[dict[str, Schema], dict[type[BaseModel], str]]:
    """Every schema by its title, and the title of each class that an endpoint names."""
    classes = {
        each
        for endpoint in endpoints
        for each in (*endpoint.body, endpoint.shape, endpoint.event)
        if each is not None
    }
    asked: Any = [(each, "validation") for each in sorted(classes, key=lambda each: each.__name__)]
    _, definitions = models_json_schema(asked, ref_template=_REF)
    found = definitions["$defs"]
    titles = {_REF.format(model=name): schema["title"] for name, schema in found.items()}
    schemas = {schema["title"]: _retitled(schema, titles) for schema in found.values()}
    assert len(schemas) == len(found), "two classes have one title"
    return schemas, {each: str(each.model_config.get("title", each.__name__)) for each in classes}


def _retitled(value: Any, titles: dict[str, str]) -> Any:
    """With references by title, and without titles."""
    if isinstance(value, list):
        return [_retitled(each, titles) for each in value]
    if not isinstance(value, dict):
        return value
    told: Schema = {
        key: _properties(each, titles) if key == "properties" else _retitled(each, titles)
        for key, each in value.items()
        if not (key == "title" and isinstance(each, str))
    }
    if "$ref" in told:
        told["$ref"] = _REF.format(model=titles[told["$ref"]])
    if isinstance(told.get("description"), str):
        told["description"] = " ".join(told["description"].split())
    return told


def _properties(fields: dict[str, Schema], titles: dict[str, str]) -> dict[str, Schema]:
    """Null is a field that is not there, unless a field says that it may be there and null."""
    told = {}
    for name, said in fields.items():
        schema = told[name] = _retitled(said, titles)
        if "default" not in schema or schema["default"] is not None:
            continue
        del schema["default"]
        if not schema.pop(MAY_BE_NULL, False) and "anyOf" in schema:
            kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
            del schema["anyOf"]
            schema |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return told


def _operation(endpoint: Endpoint, names: dict[type[BaseModel], str]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(endpoint.path)
    ]
    parameters += [
        {"name": each.name, "in": "query", "description": each.meaning, "schema": each.schema}
        for each in endpoint.query
    ]
    if _has_time(endpoint):
        parameters += [{"in": "header", **header} for header in _HEADERS]
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__.strip("_"),
        "summary": endpoint.summary,
        "responses": {"200": _answer(endpoint, names), **_errors(endpoint)},
    }
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        schemas = [_ref(names[body]) for body in endpoint.body]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _has_time(endpoint: Endpoint) -> bool:
    """Whether something is computed that clients wait for, and others for them."""
    return any("timeout" in body.model_fields for body in endpoint.body)


def _ref(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}


def _answer(endpoint: Endpoint, names: dict[type[BaseModel], str]) -> dict[str, Any]:
    schema: Schema = {"type": "object" if endpoint.media_type == "application/json" else "string"}
    if endpoint.shape is not None:
        schema = _ref(names[endpoint.shape])
    content: dict[str, Any] = {endpoint.media_type: {"schema": schema}}
    if endpoint.event is not None:
        content["text/event-stream"] = {"schema": _ref(names[endpoint.event])}
    return {"description": endpoint.answer, "content": content}


def _errors(endpoint: Endpoint) -> dict[str, Any]:
    faults = {Fault.INTERNAL, *_OF_PATHS.get(endpoint.path, ())}
    if endpoint.path not in OPEN_PATHS:
        faults.add(Fault.UNAUTHENTICATED)
    if endpoint.query:
        faults.add(Fault.INVALID)
    if endpoint.body:
        faults.update(_OF_BODIES)
    if _has_time(endpoint):
        faults.add(Fault.TIMED_OUT)
    name = "AnthropicError" if endpoint.path.startswith(ANTHROPIC_PATH) else "Error"
    content = {"application/json": {"schema": _ref(name)}}
    told = {}
    for fault in sorted(faults, key=lambda fault: ERROR_KINDS[fault].status):
        kind = ERROR_KINDS[fault]
        words = _MEANINGS.get(kind.status) or (kind.code or kind.type).replace("_", " ")
        told[str(kind.status)] = {"description": words, "content": content}
    return told
