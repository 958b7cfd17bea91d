"""The OpenAPI document of this server: made from its endpoints, so that it cannot say another.

Bodies are pydantic's schemas of what is really parsed; of the answers it says whose shape they
have, since OpenAI and Anthropic document them.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from gateway.errors import Fault
from gateway.openai.errors import ERROR_KINDS
from router.endpoints import Endpoint
from router.middleware import OPEN_PATHS
from router.responses import ANTHROPIC_PATH

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_REF = "#/components/schemas/{model}"

_OF_PATHS = {
    "/ready": (Fault.UNAVAILABLE,),
    "/v1/models/{name:path}": (Fault.UNKNOWN_MODEL,),
    "/v1/responses/{response_id}": (Fault.UNKNOWN_RESPONSE,),
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

_ERRORS = {
    # name: its schema
    "Error": {
        "description": "What every error is; `param` names the field that is wrong.",
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "AnthropicError": {
        "description": f"What every error of {ANTHROPIC_PATH} is.",
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
            "request_id": {"type": "string"},
        },
    },
}


def document(endpoints: Sequence[Endpoint], version: str, *, needs_key: bool) -> dict[str, Any]:
    """The document, as JSON. `needs_key`: whether clients must send one."""
    bodies = [(body, "validation") for endpoint in endpoints for body in endpoint.body]
    _, definitions = models_json_schema(bodies, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = _PARAMETER.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint)
    told: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Quire",
            "version": version,
            "description": "A server of large language models that speaks OpenAI's API, with "
            "vLLM's extra fields, and Anthropic's Messages.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted((definitions.get("$defs", {}) | _ERRORS).items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    if needs_key:
        told["security"] = [{"bearer": []}, {"x-api-key": []}]
    return told


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(endpoint.path)
    ]
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__.strip("_"),
        "summary": endpoint.summary,
        "responses": {"200": _answer(endpoint), **_errors(endpoint)},
    }
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        schemas = [{"$ref": _REF.format(model=body.__name__)} for body in endpoint.body]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    schema = {"type": "object" if endpoint.media_type == "application/json" else "string"}
    content: dict[str, Any] = {endpoint.media_type: {"schema": schema}}
    if endpoint.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": endpoint.answer, "content": content}


def _errors(endpoint: Endpoint) -> dict[str, Any]:
    faults = {Fault.INTERNAL, *_OF_PATHS.get(endpoint.path, ())}
    if endpoint.path not in OPEN_PATHS:
        faults.add(Fault.UNAUTHENTICATED)
    if endpoint.body:
        faults.update(_OF_BODIES)
    name = "AnthropicError" if endpoint.path.startswith(ANTHROPIC_PATH) else "Error"
    content = {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}
    told = {}
    for fault in sorted(faults, key=lambda fault: ERROR_KINDS[fault].status):
        kind = ERROR_KINDS[fault]
        words = (kind.code or kind.type).replace("_", " ")
        told[str(kind.status)] = {"description": words, "content": content}
    return told
