"""Errors as Anthropic's clients expect them; the status is the same as in OpenAI's dialect."""

from typing import Any

from gateway.errors import Fault, RequestError

ERROR_TYPES: dict[Fault, str] = {
    Fault.INVALID: "invalid_request_error",
    Fault.MISSING_FIELD: "invalid_request_error",
    Fault.UNKNOWN_FIELD: "invalid_request_error",
    Fault.NOT_SUPPORTED: "invalid_request_error",
    Fault.TOO_LONG: "invalid_request_error",
    Fault.UNAUTHENTICATED: "authentication_error",
    Fault.UNKNOWN_MODEL: "not_found_error",
    Fault.UNKNOWN_RESPONSE: "not_found_error",
    Fault.UNKNOWN_PATH: "not_found_error",
    Fault.WRONG_METHOD: "invalid_request_error",
    Fault.WRONG_HOST: "invalid_request_error",
    Fault.WRONG_CONTENT_TYPE: "invalid_request_error",
    Fault.BODY_TOO_SLOW: "timeout_error",
    Fault.BODY_TOO_LARGE: "request_too_large",
    Fault.SLOW_READER: "timeout_error",
    Fault.OVERLOADED: "rate_limit_error",
    Fault.CLIENT_GONE: "invalid_request_error",
    Fault.INTERNAL: "api_error",
    Fault.UNAVAILABLE: "overloaded_error",
    Fault.TIMED_OUT: "timeout_error",
}


def error_body(error: RequestError, request_id: str | None = None) -> dict[str, Any]:
    """The JSON body, the same in a response and in a stream."""
    body: dict[str, Any] = {
        "type": "error",
        "error": {"type": ERROR_TYPES[error.fault], "message": error.message},
    }
    if request_id is not None:
        body["request_id"] = request_id
    return body
