"""A limit on each of many waits in a row, without a timer for each.

A stream waits for its peer at every token and hardly ever for long, and a timer that is set and
cancelled again costs as much as what it bounds. Here one timer serves all waits of a stream: it
looks when the wait under way began, and sleeps until that one would be too long. So a wait costs
two assignments.
"""

import asyncio
from types import TracebackType
from typing import Self

SEND_S = 60.0
"""A client that takes nothing for so long has stopped reading; its call is ended."""


class WaitLimit:
    """Ends what waits for too long with TimeoutError, which comes out of the outer block.

    async with WaitLimit(60.0) as limit:
        for event in events:
            with limit:
                await send(event)
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.timeout(None)
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Limits the waits of this task from now on."""
        await self._end.__aenter__()
        self._timer = self._loop.call_later(self._limit_s, self._look)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises TimeoutError if a wait was too long."""
        if self._timer is not None:
            self._timer.cancel()
        await self._end.__aexit__(kind, error, trace)

    def __enter__(self) -> None:
        """A wait begins."""
        self._since = self._loop.time()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """It is over."""
        self._since = None

    def _look(self) -> None:
        now = self._loop.time()
        ends_at = (now if self._since is None else self._since) + self._limit_s
        if ends_at <= now:
            self._timer = None
            self._end.reschedule(now)
        else:
            self._timer = self._loop.call_at(ends_at, self._look)
