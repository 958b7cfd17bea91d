"""What an error says to programs."""

from collections.abc import Mapping

from gateway.errors import Fault, RequestError
from protos.quire.v1 import inference_pb2

_CODES: Mapping[Fault, inference_pb2.ErrorCode] = {
    Fault.TOO_LONG: inference_pb2.ERROR_CODE_CONTEXT_LENGTH_EXCEEDED,
    Fault.UNAUTHENTICATED: inference_pb2.ERROR_CODE_INVALID_API_KEY,
    Fault.UNKNOWN_MODEL: inference_pb2.ERROR_CODE_MODEL_NOT_FOUND,
    Fault.OVERLOADED: inference_pb2.ERROR_CODE_RATE_LIMIT_EXCEEDED,
    Fault.UNAVAILABLE: inference_pb2.ERROR_CODE_SERVICE_UNAVAILABLE,
    Fault.SLOW_READER: inference_pb2.ERROR_CODE_CLIENT_TOO_SLOW,
    Fault.TIMED_OUT: inference_pb2.ERROR_CODE_TIMEOUT,
    Fault.INTERNAL: inference_pb2.ERROR_CODE_INTERNAL_ERROR,
}
"""Any other fault is that the request is wrong as it is."""


def error_detail(error: RequestError) -> inference_pb2.ErrorDetail:
    """The detail that goes with an error's status."""
    code = _CODES.get(error.fault, inference_pb2.ERROR_CODE_INVALID_REQUEST)
    detail = inference_pb2.ErrorDetail(code=code, field=error.field or "")
    if error.retry_after_s is not None:
        detail.retryable = True
        detail.retry_after_ms = 1000 * error.retry_after_s
    return detail
