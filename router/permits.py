"""How many of something may go on at a time: a permit each, or an answer that says try again.

Who is refused hears when its turn would come. As many permits come back in a second as are taken,
divided by the seconds that one is held (Little's law), and each of those refused is told a turn of
its own, so that they do not all come back for the same one.

One tenant may have them all, and not keep the others out: beyond the limit there is a quarter more
for tenants below an even share of it.

    held < limit / (tenants that hold any + 1)   while   all < limit * 5/4
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.errors import Fault, RequestError

LEAST_WAIT_S, MOST_WAIT_S = 1, 600
_KEEP = 0.95
"""Of the mean, when another permit has come back."""


class Permits:
    """So many permits, and who takes one more is refused at once: nobody waits for one."""

    def __init__(
        self, limit: int, of_what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`of_what`, for clients: "64 requests are in flight" if it is "requests are in flight"."""
        self.limit = limit
        self._of_what = of_what
        self._clock = clock
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_taken = 0
        self._held: dict[str, int] = {}
        """By tenant; of those that hold any."""
        self._mean_held_s = 0.0
        self._weight = 0.0
        self._next_turn = 0.0
        """When the next one that is refused may have a permit."""

    def check(self, tenant: str = "") -> None:
        """Raises RequestError if all are taken that this tenant may have."""
        if not self._has_one(tenant):
            raise RequestError(
                Fault.OVERLOADED,
                f"{self.num_taken} {self._of_what}, which is the most this server takes; "
                "try again shortly",
                retry_after_s=self._turn_s(),
            )

    @contextmanager
    def permit(self, tenant: str = "") -> Iterator[None]:
        """Held while the context lasts. Raises RequestError as `check` does."""
        self.check(tenant)
        since = self._clock()
        self.num_taken += 1
        self._held[tenant] = self._held.get(tenant, 0) + 1
        self._idle.clear()
        try:
            yield
        finally:
            self._note(self._clock() - since)
            self.num_taken -= 1
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]
            if self.num_taken == 0:
                self._idle.set()

    def _has_one(self, tenant: str) -> bool:
        if self.num_taken < self.limit:
            return True
        is_below = self._held.get(tenant, 0) * (len(self._held) + 1) < self.limit
        return is_below and 4 * self.num_taken < 5 * self.limit

    async def idle(self) -> None:
        """Returns when none is taken."""
        await self._idle.wait()

    def _note(self, held_s: float) -> None:
        self._weight = _KEEP * self._weight + 1.0
        self._mean_held_s += (held_s - self._mean_held_s) / self._weight

    def _turn_s(self) -> int:
        """Seconds until the turn of one more that is refused: at the latest, when all that go on
        now are over."""
        now, mean_s = self._clock(), self._mean_held_s
        turn = max(now, self._next_turn) + mean_s / max(1, self.num_taken)
        self._next_turn = min(turn, now + mean_s)
        wait_s = math.ceil(self._next_turn - now)
        return min(max(wait_s, LEAST_WAIT_S), MOST_WAIT_S)
