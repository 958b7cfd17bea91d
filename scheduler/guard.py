"""What nobody foresaw ends the scheduler, there and then.

A core that has raised in the middle of an event may have half of it in its books: replicas that are
fed no more, sequences that are blamed for what is our own defect. Nothing that it would tell from
then on can be trusted, whereas its end costs next to nothing: workers keep their weights and the
names of their blocks, routers submit what is in flight to the next scheduler, with every token that
they have. So whatever changes the cell runs under a guard, be it called by a peer or by a timer.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Guard:
    """Around everything that changes the cell."""

    def __init__(self, end: Callable[[], None] = lambda: None) -> None:
        """`end` ends the process; where it returns, as in tests, what was raised goes on."""
        self._end = end

    @contextlib.contextmanager
    def watching(self, *foreseen: type[Exception]) -> Iterator[None]:
        """Ends the process on any exception but these, which are the caller's to answer."""
        try:
            yield
        except foreseen:
            raise
        except Exception:
            logger.critical("a defect of the scheduler's own: it ends, for the next", exc_info=True)
            self._end()
            raise

    def run(self, callback: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls it under the guard."""
        with self.watching():
            return callback(*args, **kwargs)

    def call_soon(self, callback: Callable[[], None]) -> asyncio.Handle:
        """The event loop's, guarded."""
        return asyncio.get_running_loop().call_soon(self.run, callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """The event loop's, guarded."""
        return asyncio.get_running_loop().call_later(delay_s, self.run, callback)
