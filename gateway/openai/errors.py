"""Errors as OpenAI's clients expect them, and the one table from fault to status."""

from dataclasses import dataclass
from typing import Any

from gateway.errors import Fault, RequestError


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one fault looks over HTTP."""

    status: int
    type: str
    code: str | None = None


_CLIENT = "invalid_request_error"
_SERVER = "server_error"

ERROR_KINDS: dict[Fault, ErrorKind] = {
    Fault.INVALID: ErrorKind(400, _CLIENT),
    Fault.MISSING_FIELD: ErrorKind(400, _CLIENT, "missing_required_parameter"),
    Fault.UNKNOWN_FIELD: ErrorKind(400, _CLIENT, "unknown_parameter"),
    Fault.NOT_SUPPORTED: ErrorKind(400, _CLIENT, "unsupported_parameter"),
    Fault.TOO_LONG: ErrorKind(400, _CLIENT, "context_length_exceeded"),
    Fault.UNAUTHENTICATED: ErrorKind(401, _CLIENT, "invalid_api_key"),
    Fault.UNKNOWN_MODEL: ErrorKind(404, _CLIENT, "model_not_found"),
    Fault.UNKNOWN_RESPONSE: ErrorKind(404, _CLIENT, "response_not_found"),
    Fault.UNKNOWN_PATH: ErrorKind(404, _CLIENT, "unknown_url"),
    Fault.WRONG_METHOD: ErrorKind(405, _CLIENT, "method_not_allowed"),
    Fault.BODY_TOO_SLOW: ErrorKind(408, _CLIENT, "request_timeout"),
    Fault.BODY_TOO_LARGE: ErrorKind(413, _CLIENT, "request_too_large"),
    Fault.WRONG_CONTENT_TYPE: ErrorKind(415, _CLIENT, "unsupported_media_type"),
    Fault.WRONG_HOST: ErrorKind(421, _CLIENT, "misdirected_request"),
    Fault.SLOW_READER: ErrorKind(408, _CLIENT, "client_too_slow"),
    Fault.OVERLOADED: ErrorKind(429, "rate_limit_error", "rate_limit_exceeded"),
    Fault.CLIENT_GONE: ErrorKind(499, _CLIENT, "client_closed_request"),
    Fault.INTERNAL: ErrorKind(500, _SERVER, "internal_error"),
    Fault.UNAVAILABLE: ErrorKind(503, _SERVER, "service_unavailable"),
    Fault.TIMED_OUT: ErrorKind(504, "timeout_error", "timeout"),
}


def error_body(error: RequestError) -> dict[str, Any]:
    """The JSON body, the same in a response and in a stream."""
    kind = ERROR_KINDS[error.fault]
    return {
        "error": {
            "message": error.message,
            "type": kind.type,
            "param": error.field,
            "code": kind.code,
        }
    }
