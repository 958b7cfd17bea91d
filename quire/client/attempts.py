"""When to try again, and how long all attempts may take together.

A call is tried again only while nothing of its answer has been seen, and only if that can help:
the router says so (in the detail of its error, and with gRPC's own trailer for it), or nobody
answers. Where nobody has ever answered, the address is more likely wrong than the router away: that
is told within seconds, unless whoever made the client wants to wait.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from quire.client.failures import failure, is_silence, pushback_of, why_silent
from quire.errors import Cancelled, Unavailable

MAX_RETRIES = 29
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 2.0
LONGEST_PUSHBACK_S = 60.0
"""Who is told to come back later than this decides for themselves whether to."""
STRANGER_S = 2.0
"""Where nobody has ever answered, nobody is waited for longer."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Acquaintance:
    """What a client knows of the router it speaks to."""

    target: str
    waits: bool
    """It is waited for until it is there and ready, however many attempts that takes."""
    met: bool = False
    """Somebody has answered."""


class Attempts:
    """The attempts of one call.

    while True:
        async with attempts.one() as timeout_s:
            return await stub.Tokenize(request, timeout=timeout_s)
    """

    def __init__(
        self, timeout_s: float | None, max_retries: int, acquaintance: Acquaintance
    ) -> None:
        """`timeout_s` is for all of them together; None: no limit."""
        self._clock = asyncio.get_running_loop().time
        self._ends_at = None if timeout_s is None else self._clock() + timeout_s
        self._stranger_until = self._clock() + STRANGER_S
        self._retries_left = max_retries
        self._backoff_s = FIRST_BACKOFF_S
        self._acquaintance = acquaintance
        self._told = False
        self.final = False
        """Set when something of the answer has been seen: what fails now stays failed."""

    @asynccontextmanager
    async def one(self) -> AsyncIterator[float | None]:
        """An attempt; what it may take, in seconds. An error that is worth another attempt is
        waited out, and the block left as if nothing had been. Raises RequestFailed for others."""
        try:
            yield None if self._ends_at is None else max(0.0, self._ends_at - self._clock())
            self._acquaintance.met = True
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            raise Cancelled("the call was cancelled, or its client closed") from error
        except grpc.aio.AioRpcError as error:
            silent = is_silence(error)
            self._acquaintance.met |= self.final or not silent
            wait_s = self._worth_waiting_s(error)
            if wait_s is None:
                raise self._silence(error) if silent else failure(error) from error
            if silent:
                self._tell(error)
            await asyncio.sleep(wait_s)

    def _silence(self, error: grpc.aio.AioRpcError) -> Unavailable:
        """What is said of a router that does not answer."""
        target, hint = self._acquaintance.target, ""
        if not (self._acquaintance.met or self._acquaintance.waits):
            hint = " (wait_for_ready=True waits for it)"
        return Unavailable(
            f"no answer from the router at {target}: {why_silent(error)}{hint}", retry_after_s=0.0
        )

    def _tell(self, error: grpc.aio.AioRpcError) -> None:
        """Once, where all attempts may take long."""
        if not self._told and (self._acquaintance.met or self._acquaintance.waits):
            self._told = True
            target = self._acquaintance.target
            _log.warning(
                "no answer from the router at %s: %s; trying again", target, why_silent(error)
            )

    def _worth_waiting_s(self, error: grpc.aio.AioRpcError) -> float | None:
        """Seconds after which to try again; None: not at all."""
        pushback_s = pushback_of(error)
        counts = not (self._acquaintance.waits and error.code() == grpc.StatusCode.UNAVAILABLE)
        if pushback_s is None or self.final or (counts and not self._retries_left):
            return None
        if pushback_s > LONGEST_PUSHBACK_S:
            return None
        # Clients that were refused together shall not come back together.
        wait_s = max(pushback_s, self._backoff_s) * random.uniform(1.0, 1.25)
        again_at = self._clock() + wait_s
        if self._ends_at is not None and again_at >= self._ends_at:
            return None
        is_stranger = not (self._acquaintance.met or self._acquaintance.waits)
        if is_stranger and again_at >= self._stranger_until:
            return None
        self._retries_left -= counts
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
        return wait_s
