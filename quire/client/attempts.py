"""When to try again, how long all attempts may take together, and what an error is called.

A call is tried again only while nothing of its answer has been seen, and only if that can help:
the router says so (with gRPC's own trailer, `grpc-retry-pushback-ms`), or nobody answers.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from protos.outage import plainly
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

MAX_RETRIES = 29
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 2.0
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"

_log = logging.getLogger(__name__)

_KINDS: dict[grpc.StatusCode, type[RequestFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationFailed,
    grpc.StatusCode.NOT_FOUND: ModelNotServed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


class Attempts:
    """The attempts of one call.

    while True:
        async with attempts.one() as timeout_s:
            return await stub.Tokenize(request, timeout=timeout_s)
    """

    def __init__(self, timeout_s: float | None, max_retries: int) -> None:
        """`timeout_s` is for all of them together; None: no limit."""
        self._clock = asyncio.get_running_loop().time
        self._ends_at = None if timeout_s is None else self._clock() + timeout_s
        self._retries_left = max_retries
        self._backoff_s = FIRST_BACKOFF_S
        self._told = False
        self.final = False
        """Set when something of the answer has been seen: what fails now stays failed."""

    @asynccontextmanager
    async def one(self) -> AsyncIterator[float | None]:
        """An attempt; what it may take, in seconds. An error that is worth another attempt is
        waited out, and the block left as if nothing had been. Raises RequestFailed for others."""
        try:
            yield None if self._ends_at is None else max(0.0, self._ends_at - self._clock())
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            raise Cancelled("the call was cancelled, or its client closed") from error
        except grpc.aio.AioRpcError as error:
            wait_s = self._worth_waiting_s(error)
            if wait_s is None:
                raise failure(error) from error
            self._tell(error)
            await asyncio.sleep(wait_s)

    def _tell(self, error: grpc.aio.AioRpcError) -> None:
        """Once: whoever has a wrong address shall not wait for all attempts to learn it."""
        if not self._told and pushback_of(error) == 0:
            self._told = True
            why = plainly(error.code().name, error.details())
            _log.warning("no answer from the router: %s; trying again", why)

    def _worth_waiting_s(self, error: grpc.aio.AioRpcError) -> float | None:
        """Seconds after which to try again; None: not at all."""
        pushback_s = pushback_of(error)
        if pushback_s is None or self.final or not self._retries_left:
            return None
        # Clients that were refused together shall not come back together.
        wait_s = max(pushback_s, self._backoff_s) * random.uniform(1.0, 1.25)
        if self._ends_at is not None and self._clock() + wait_s >= self._ends_at:
            return None
        self._retries_left -= 1
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
        return wait_s


def pushback_of(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds after which trying again may help; None if it would not.

    UNAVAILABLE may be gRPC's own (nobody listens yet). RESOURCE_EXHAUSTED may be too (a message
    is too large, for ever), so only the router's word makes it worth a retry. A negative number is
    that word for "do not".
    """
    pushback = dict(error.trailing_metadata() or ()).get(PUSHBACK_TRAILER)
    if pushback is not None:
        try:
            pushback_ms = int(pushback)
        except ValueError:
            return None
        return pushback_ms / 1000 if pushback_ms >= 0 else None
    return 0.0 if error.code() == grpc.StatusCode.UNAVAILABLE else None


def failure(error: grpc.aio.AioRpcError) -> RequestFailed:
    """The error, by its name here."""
    kind = _KINDS.get(error.code(), RequestFailed)
    return kind(error.details() or error.code().name, retry_after_s=pushback_of(error))
