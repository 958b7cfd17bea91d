"""Who asks, and how long they wait: what a call says beside its body, and what comes of it.

Tenants get even shares of what the cell computes. Who sends a key is the tenant that the key is
named after; where no keys are asked for, a tenant is whoever a client says that it is.
"""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from gateway.errors import Fault, RequestError, invalid, quote
from gateway.ranges import MAX_TIMEOUT_S, check_range
from gateway.request import GenerateRequest

TENANT = "X-Tenant"
TIMEOUT = "X-Request-Timeout"
CALL_DEADLINE = "the call's deadline"

TENANT_PATTERN = r"[A-Za-z0-9._@:/-]{1,64}"

_TENANT = re.compile(TENANT_PATTERN)
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be complete."""

    at: float
    """On the monotonic clock, seconds."""
    timeout_s: float
    """What the client gave it, from its arrival."""
    said_as: str

    def left_s(self) -> float:
        """From now on; negative when it has passed."""
        return self.at - time.monotonic()

    def passed(self, *, has_begun: bool) -> RequestError:
        """The error of a call that is not complete by then."""
        was = "the answer was complete" if has_begun else "the first token came"
        return RequestError(
            Fault.TIMED_OUT, f"{self.said_as} is {self.timeout_s:g} s; it passed before {was}"
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and how long they wait."""

    tenant: str = ""
    timeout_s: float | None = None
    """None: as long as it takes, or as the body says."""
    timeout_said_as: str = TIMEOUT
    key_name: str | None = None
    """Of the key that was sent; None where none is asked for."""

    def deadline(self, requests: Iterable[GenerateRequest], arrived_at: float) -> Deadline | None:
        """The sooner of what the call and its body say; None if neither says any."""
        said = [(request.timeout_s, request.field_names["timeout"]) for request in requests]
        said.append((self.timeout_s, self.timeout_said_as))
        known = [(timeout_s, name) for timeout_s, name in said if timeout_s is not None]
        if not known:
            return None
        timeout_s, name = min(known)
        return Deadline(arrived_at + timeout_s, timeout_s, name)


NOBODY = Caller()
"""The router itself."""


def http_caller(scope: Scope) -> Caller:
    """Who sends an HTTP request. Raises RequestError."""
    headers = Headers(scope=scope)
    timeout_s = _timeout_s(headers.get(TIMEOUT))
    key_name = key_name_of(scope)
    return Caller(_tenant(headers.get(TENANT), key_name), timeout_s, key_name=key_name)


def key_name_of(scope: Scope) -> str | None:
    """The name of the key that an HTTP request brings; None where none is asked for."""
    name: str | None = scope["state"].get("key_name")
    return name


def grpc_caller(
    metadata: Mapping[str, str | bytes], time_remaining_s: float | None, key_name: str | None
) -> Caller:
    """Who makes a gRPC call, which ends in so many seconds. Raises RequestError."""
    tenant = metadata.get(TENANT.lower())
    left_s = time_remaining_s
    if left_s is not None and left_s > MAX_TIMEOUT_S:
        left_s = None  # clients that set none may say a very far one
    return Caller(
        _tenant(tenant if isinstance(tenant, str) else None, key_name),
        left_s,
        CALL_DEADLINE,
        key_name,
    )


def _tenant(said: str | None, key_name: str | None) -> str:
    if said is None:
        return key_name or ""
    if not _TENANT.fullmatch(said):
        raise invalid(
            TENANT,
            f"{TENANT} is {quote(said)}; it must be 1 to 64 letters, digits or any of ._@:/-",
        )
    if key_name is not None and said != key_name:
        raise invalid(
            TENANT,
            f"{TENANT} is {quote(said)}; the key that was sent makes it {quote(key_name)}",
        )
    return said


def _timeout_s(said: str | None) -> float | None:
    if said is None:
        return None
    if not _NUMBER.fullmatch(said):
        raise invalid(
            TIMEOUT,
            f"{TIMEOUT} is {quote(said)}; it must be a number of seconds, in digits, "
            f"above 0 and at most {MAX_TIMEOUT_S}",
        )
    timeout_s = float(said)
    check_range(TIMEOUT, timeout_s, high=MAX_TIMEOUT_S, above=0)
    return timeout_s
