"""Errors as HTTP responses."""

from starlette.responses import JSONResponse

from gateway.errors import Fault, RequestError
from gateway.openai.errors import ERROR_KINDS, error_body

_HANGS_UP = (Fault.BODY_TOO_LARGE, Fault.BODY_TOO_SLOW)
"""The rest of the body is not worth reading."""


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> JSONResponse:
    """OpenAI's error body, with its status and the headers that belong to it."""
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.fault is Fault.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    if error.fault in _HANGS_UP:
        headers["connection"] = "close"
    return JSONResponse(error_body(error), ERROR_KINDS[error.fault].status, headers)
