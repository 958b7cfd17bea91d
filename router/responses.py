"""Errors as HTTP responses, in the dialect of the path that was asked."""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Scope

from gateway.anthropic import errors as anthropic
from gateway.errors import Fault, RequestError
from gateway.openai import errors as openai

ANTHROPIC_PATH = "/v1/messages"
"""It and what is below it speak Anthropic's dialect."""
MODELS_PATH = "/v1/models"
"""It and what is below it speak the dialect of who asks."""

_HANGS_UP = (Fault.BODY_TOO_LARGE, Fault.BODY_TOO_SLOW)
"""The rest of the body is not worth reading."""


def error_response(
    error: RequestError,
    scope: Scope,
    headers: Mapping[str, str] | None = None,
    *,
    beside: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """The error's body, with its status and the headers that belong to it; `beside` is in the body,
    too."""
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.fault is Fault.UNAUTHENTICATED:
        headers.setdefault("www-authenticate", "Bearer")
    if error.fault in _HANGS_UP:
        headers["connection"] = "close"
    body = _body(error, scope) | dict(beside or {})
    return JSONResponse(body, openai.ERROR_KINDS[error.fault].status, headers)


def is_for_anthropics(scope: Scope) -> bool:
    """Whether a client of Anthropic's reads the answer: they say the version of their API."""
    path: str = scope["path"]
    if path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/"):
        return True
    is_models = path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/")
    return is_models and "anthropic-version" in Headers(scope=scope)


def _body(error: RequestError, scope: Scope) -> dict[str, Any]:
    if is_for_anthropics(scope):
        return anthropic.error_body(error, scope["state"]["request_id"])
    return openai.error_body(error)
