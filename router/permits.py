"""How many of something may go on at a time: a permit each, or an answer that says try again."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Fault, RequestError


class Permits:
    """So many permits, and who takes one more is refused at once: nobody waits for one."""

    def __init__(self, limit: int, of_what: str) -> None:
        """`of_what`, for clients: "64 requests are in flight" if it is "requests are in flight"."""
        self._limit = limit
        self._of_what = of_what
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_taken = 0

    def check(self) -> None:
        """Raises RequestError if all are taken."""
        if self.num_taken >= self._limit:
            raise RequestError(
                Fault.OVERLOADED,
                f"{self.num_taken} {self._of_what}, which is the most this server takes; "
                "try again shortly",
                retry_after_s=1,
            )

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Held while the context lasts. Raises RequestError if all are taken."""
        self.check()
        self.num_taken += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_taken -= 1
            if self.num_taken == 0:
                self._idle.set()

    async def idle(self) -> None:
        """Returns when none is taken."""
        await self._idle.wait()
