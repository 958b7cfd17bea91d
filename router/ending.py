"""An orderly end: told to, the router refuses new requests and finishes the running ones, up to the
drain timeout or until it is told again. Those that it cuts off hear so.

One that shares its ports with others no longer listens by then, and first answers what still comes
on connections that it has: clients with pools go on asking there. From when it is told, every
answer says that its connection ends with it (`Connection: close`).
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence

from router.backend import Backend

_LAST_WORDS_S = 1.0
"""In which requests that are cut off tell their clients so."""

LINGER_S = 2.0
"""Kept connections on which nobody has asked for so long end with the process."""
_LOOK_S = 0.05

_log = logging.getLogger(__name__)


class Signals:
    """SIGTERM and SIGINT: the first, the second; a third ends the process at once. SIGHUP: what
    there is to be done at once, instead of ending.

    Of routers that share ports, one that hears SIGTERM goes alone, and leaves new connections to
    the others. SIGINT says that all of them end, so that somebody must be there to say so.
    """

    def __init__(self, on_hangup: Callable[[], None]) -> None:
        self.told = asyncio.Event()
        self.told_again = asyncio.Event()
        self.goes_alone = True
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._hear, number)

    def _hear(self, number: signal.Signals) -> None:
        if self.told_again.is_set():
            os._exit(1)
        if self.told.is_set():
            self.told_again.set()
        else:
            self.goes_alone = number is signal.SIGTERM
            self.told.set()


async def until_told(told: asyncio.Event, running: Sequence[asyncio.Task[None]]) -> None:
    """Returns when told to end; raises what ended a task that should run for ever."""
    waiting = asyncio.create_task(told.wait())
    done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()
        raise RuntimeError(f"{task.get_name()} ended by itself")


async def see_off(
    backend: Backend,
    num_connections: Callable[[], int],
    timeout_s: float,
    told_again: asyncio.Event,
) -> None:
    """Answers who is here already, while others share the ports. Returns when nobody has asked for
    a while, when there is nobody left who could, when told again or after the timeout."""
    backend.engine.leaving = True
    backend.engine.uplink.leave()
    quiet_s = 0.0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while quiet_s < LINGER_S and not told_again.is_set():
                await asyncio.sleep(_LOOK_S)  # before the first look: some are only being let in
                if not num_connections():
                    return
                is_busy = backend.permits.num_taken or backend.uploads.num_taken
                quiet_s = 0.0 if is_busy else quiet_s + _LOOK_S


async def drain(backend: Backend, timeout_s: float, told_again: asyncio.Event) -> None:
    """New requests are refused from now on; running ones get their time, unless told again."""
    engine = backend.engine
    engine.leaving = engine.draining = True
    engine.uplink.leave()
    if backend.permits.num_taken:
        _log.info("draining: %s", _in_flight(backend))
    idle = asyncio.create_task(backend.permits.idle())
    hurry = asyncio.create_task(told_again.wait())
    await asyncio.wait((idle, hurry), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if not idle.done():
        why = "told again to end" if told_again.is_set() else "the drain timeout is over"
        _log.warning("%s: %s cut off", why, _in_flight(backend))
        engine.end_all("the server had to stop before the request was complete")
        await asyncio.wait((idle,), timeout=_LAST_WORDS_S)
    idle.cancel()
    hurry.cancel()


def _in_flight(backend: Backend) -> str:
    count = backend.permits.num_taken
    return f"{count} request{'s' * (count != 1)} in flight"
