"""Events that were kept, sent to a client as a stream, and then those that come after them.

Any number of clients may read the same events, each at its own pace, and what they read is there
already: one that is slow costs nothing but its connection.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Receive, Scope, Send

KEEP_ALIVE_S = 10.0
"""So often it is looked whether a stream needs a comment: silence lasts twice as long at most."""

EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventLog(Protocol):
    """Events that may still become more."""

    @property
    def events(self) -> Sequence[bytes]:
        """All of them so far, each as it is written in a stream."""

    @property
    def is_ended(self) -> bool:
        """Whether there will be no more."""
        ...

    async def news(self) -> None:
        """Returns when there are more, or it has ended."""


@dataclass(frozen=True, slots=True)
class EndedLog:
    """One that has ended."""

    events: Sequence[bytes]
    is_ended: bool = True

    async def news(self) -> None:
        """Returns at once."""


async def send_events(
    log: EventLog, first: int, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answers with the events from number `first` on, to the end of the log or until the client
    leaves."""
    gone = asyncio.create_task(_until_gone(receive))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
        async for body in _batches(log, first, gone):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _batches(log: EventLog, first: int, gone: asyncio.Task[None]) -> AsyncIterator[bytes]:
    """What there is, as it comes; a comment when nothing does."""
    while not gone.done():
        is_ended = log.is_ended
        if events := log.events[first:]:
            first += len(events)
            yield b"".join(events)
        elif is_ended:
            return
        else:
            news = asyncio.create_task(log.news())
            done, _ = await asyncio.wait(
                (news, gone), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
            )
            news.cancel()
            if not done:
                yield b": still here\n\n"


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
