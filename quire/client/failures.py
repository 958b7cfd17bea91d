"""What an error of a call is called, and what it says to programs."""

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from protos.outage import plainly
from protos.quire.v1 import inference_pb2
from quire.errors import (
    AuthenticationFailed,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotServed,
    Overloaded,
    RequestFailed,
    Unavailable,
)

PUSHBACK_TRAILER = "grpc-retry-pushback-ms"
DETAILS_TRAILER = "grpc-status-details-bin"

_KINDS: dict[grpc.StatusCode, type[RequestFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationFailed,
    grpc.StatusCode.NOT_FOUND: ModelNotServed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def failure(error: grpc.aio.AioRpcError) -> RequestFailed:
    """The error, by its name here."""
    kind = _KINDS.get(error.code(), RequestFailed)
    detail = _detail_of(error)
    field = code = None
    if detail is not None:
        field = detail.field or None
        code = _code_name(detail.code)
    return kind(
        error.details() or error.code().name,
        retry_after_s=pushback_of(error),
        field=field,
        code=code,
    )


def pushback_of(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds after which trying again may help; None if it would not.

    UNAVAILABLE may be gRPC's own (nobody listens yet). RESOURCE_EXHAUSTED may be too (a message
    is too large, for ever), so only the router's word makes it worth a retry. A negative number in
    its trailer is that word for "do not".
    """
    detail = _detail_of(error)
    if detail is not None:
        return detail.retry_after_ms / 1000 if detail.retryable else None
    pushback = _trailers(error).get(PUSHBACK_TRAILER)
    if pushback is not None:
        try:
            pushback_ms = int(pushback)
        except ValueError:
            return None
        return pushback_ms / 1000 if pushback_ms >= 0 else None
    return 0.0 if error.code() == grpc.StatusCode.UNAVAILABLE else None


def is_silence(error: grpc.aio.AioRpcError) -> bool:
    """Whether it is gRPC's own word that there is nobody: a router says more."""
    trailers = _trailers(error)
    said = PUSHBACK_TRAILER in trailers or DETAILS_TRAILER in trailers
    return error.code() == grpc.StatusCode.UNAVAILABLE and not said


def why_silent(error: grpc.aio.AioRpcError) -> str:
    """In plain words."""
    return plainly(error.code().name, error.details())


def _detail_of(error: grpc.aio.AioRpcError) -> inference_pb2.ErrorDetail | None:
    packed = _trailers(error).get(DETAILS_TRAILER)
    if not isinstance(packed, bytes):
        return None
    detail = inference_pb2.ErrorDetail()
    try:
        details = status_pb2.Status.FromString(packed).details
        return detail if any(each.Unpack(detail) for each in details) else None
    except DecodeError:  # not a router of ours
        return None


def _code_name(code: inference_pb2.ErrorCode) -> str | None:
    """None for one that this version does not know."""
    if code not in inference_pb2.ErrorCode.values() or not code:
        return None
    return inference_pb2.ErrorCode.Name(code).removeprefix("ERROR_CODE_").lower()


def _trailers(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    return dict(error.trailing_metadata() or ())
