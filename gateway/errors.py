"""What may go wrong with a request, and whose fault it is.

    RequestError   one request cannot be served; `fault` says why, and so which status it gets
    ModelError     the model directory cannot be served at all; a restart does not cure it

A message is fit for clients: it names the field, the limit and the value given, quotes at most a
few characters of what the client sent, and never an address or a path of ours.
"""

import json
from enum import Enum, auto

_MAX_QUOTED_CHARACTERS = 48


class Fault(Enum):
    """Why a request is not served; each front, HTTP and gRPC, has one table from this to status."""

    INVALID = auto()
    """The request is wrong as it is: do not retry."""
    TOO_LONG = auto()
    """Prompt and output do not fit into the model's length."""
    UNKNOWN_MODEL = auto()
    UNKNOWN_RESPONSE = auto()
    UNKNOWN_PATH = auto()
    WRONG_METHOD = auto()
    WRONG_CONTENT_TYPE = auto()
    UNAUTHENTICATED = auto()
    BODY_TOO_LARGE = auto()
    BODY_TOO_SLOW = auto()
    OVERLOADED = auto()
    """Too much in flight: retry later."""
    UNAVAILABLE = auto()
    """Nobody serves just now (no worker, draining): retry later."""
    SLOW_READER = auto()
    """The client did not read what it asked for."""
    CLIENT_GONE = auto()
    """The client left; nobody reads the answer."""
    INTERNAL = auto()
    """Our fault."""


class RequestError(Exception):
    """One request cannot be served."""

    def __init__(
        self,
        fault: Fault,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class ModelError(Exception):
    """The model directory lacks something or holds something that cannot be served."""


def invalid(field: str, message: str) -> RequestError:
    """A wrong value of `field`."""
    return RequestError(Fault.INVALID, message, field=field)


def quote(value: object) -> str:
    """`value` as JSON, cut to a length that is fit for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be answered
    if len(text) > _MAX_QUOTED_CHARACTERS:
        return text[:_MAX_QUOTED_CHARACTERS] + "…"
    return text
