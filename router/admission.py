"""How many requests may be in flight: a permit each, taken before anything is read or tokenized."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Fault, RequestError
from router.metrics import Metrics


class Admission:
    """Permits for requests in flight."""

    def __init__(self, max_in_flight: int, metrics: Metrics) -> None:
        self._max_in_flight = max_in_flight
        self._metrics = metrics
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Held for as long as the request is answered. Raises RequestError if there is none."""
        if self._metrics.in_flight >= self._max_in_flight:
            raise RequestError(
                Fault.OVERLOADED,
                f"{self._max_in_flight} requests are in flight, which is the most this server "
                "takes; try again shortly",
                retry_after_s=1,
            )
        self._metrics.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._metrics.in_flight -= 1
            if self._metrics.in_flight == 0:
                self._idle.set()

    async def idle(self) -> None:
        """Returns when nothing is in flight."""
        await self._idle.wait()
