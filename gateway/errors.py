"""What may go wrong with a request, and whose fault it is.

    RequestError   one request cannot be served; `fault` says why, and so which status it gets
    ModelError     the model directory cannot be served at all; a restart does not cure it

A message is fit for clients: it names the field, the limit and the value given, quotes at most a
few characters of what the client sent, and never an address or a path of ours.
"""

import json
import re
from collections.abc import Iterable
from enum import Enum, auto

_MAX_QUOTED_CHARACTERS = 48
_FIELD = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Fault(Enum):
    """Why a request is not served; each front, HTTP and gRPC, has one table from this to status."""

    INVALID = auto()
    """The request is wrong as it is: do not retry."""
    MISSING_FIELD = auto()
    UNKNOWN_FIELD = auto()
    NOT_SUPPORTED = auto()
    """A field or a value that others serve and we do not."""
    TOO_LONG = auto()
    """Prompt and output do not fit into the model's length."""
    UNKNOWN_MODEL = auto()
    UNKNOWN_RESPONSE = auto()
    UNKNOWN_PATH = auto()
    WRONG_METHOD = auto()
    WRONG_HOST = auto()
    """Asked by a name that is not this server's."""
    WRONG_CONTENT_TYPE = auto()
    UNAUTHENTICATED = auto()
    BODY_TOO_LARGE = auto()
    BODY_TOO_SLOW = auto()
    OVERLOADED = auto()
    """Too much in flight: retry later."""
    UNAVAILABLE = auto()
    """Nobody serves just now (no worker, draining): retry later."""
    TIMED_OUT = auto()
    """It was not complete when the time that the client gave it was over."""
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


def missing(field: str) -> RequestError:
    """There must be a value of `field`."""
    return RequestError(Fault.MISSING_FIELD, f"{field} is missing", field=field)


def wrong(field: str, value: object, expected: str) -> RequestError:
    """A value of a wrong kind. Null is no value."""
    if value is None:
        return missing(field)
    return invalid(field, f"{field} is {quote(value)}; it must be {expected}")


def not_supported(field: str, value: object) -> RequestError:
    """Something that others serve."""
    message = f"{field} is {quote(value)}; it is not supported by this server"
    return RequestError(Fault.NOT_SUPPORTED, message, field=field)


def quote_field(name: str) -> str:
    """A field's name as a client wrote it, cut and quoted if it is not fit for a message."""
    return name if _FIELD.fullmatch(name) else quote(name)


def one_of(values: Iterable[object]) -> str:
    """What a value must be, where there are few."""
    return f"one of {json.dumps(list(values))}"


def quote(value: object) -> str:
    """`value` as JSON, cut to a length that is fit for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be answered
    if len(text) > _MAX_QUOTED_CHARACTERS:
        return text[:_MAX_QUOTED_CHARACTERS] + "…"
    return text
