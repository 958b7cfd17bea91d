"""One bidi stream: messages are received in order, sent from a bounded outbox, and it ends once.

`send` and `close` never wait, so whoever drives the cell is never held up by a peer. A peer that
does not read fills its own outbox and loses its own stream. Messages are bytes on both sides.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import grpc

from scheduler.wire.columns import Malformed

logger = logging.getLogger(__name__)

_END = type(grpc.aio.EOF)

Context = grpc.aio.ServicerContext[bytes, bytes]


class Stream:
    """The scheduler's end of one stream of a router or a rank."""

    def __init__(self, context: Context, *, max_outbox_bytes: int) -> None:
        self._context = context
        self._max_outbox_bytes = max_outbox_bytes
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._wake = asyncio.Event()
        self._end: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.Future()
        self._last_words: tuple[grpc.StatusCode, str] | None = None
        self._ended = False

    @property
    def peer(self) -> str:
        """Where it was dialled from, for logs."""
        peer = str(self._context.peer())
        return "a unix socket" if peer == "unix:" else peer

    def send(self, message: bytes) -> None:
        """Queues the message; closes the stream instead when the peer has left too much unread."""
        if self._ended:
            return
        self._outbox_bytes += len(message)
        if self._outbox_bytes > self._max_outbox_bytes:
            unread = f"{self._outbox_bytes} bytes are unread; at most {self._max_outbox_bytes} wait"
            self.close(grpc.StatusCode.RESOURCE_EXHAUSTED, unread)
            return
        self._outbox.append(message)
        self._wake.set()

    def close(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the stream with this status, dropping what is unsent. The first call counts."""
        if not self._ended:
            self._ended = True
            self._outbox.clear()
            self._end.set_result((code, details))

    def close_after_outbox(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the stream with this status once everything queued so far is written.

        What the peer says meanwhile is dropped.
        """
        if not self._ended:
            self._ended = True
            self._last_words = (code, details)
            self._wake.set()

    async def run(self, receive: Callable[[bytes], Awaitable[None]]) -> None:
        """Serves until the peer half-closes or goes, `close` is called, or `receive` raises.

        `receive` gets one message at a time; from it, Malformed ends the stream with
        INVALID_ARGUMENT and any other exception is raised here.
        """
        reader = asyncio.create_task(self._read(receive))
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait((reader, writer, self._end), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            if self._last_words is not None:  # a peer that has said all may still listen
                await asyncio.wait((writer, self._end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ended = True
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def finish(self) -> None:
        """Gives the peer the status of `close`, if that is how the stream ended. Call it last:
        a peer that does not read makes this wait until its connection breaks."""
        if self._end.done():
            await self._context.abort(*self._end.result())

    async def _read(self, receive: Callable[[bytes], Awaitable[None]]) -> None:
        try:
            while not isinstance(message := await self._context.read(), _END):
                if not self._ended:
                    await receive(message)
        except Malformed as error:
            logger.warning("%s sent a malformed message: %s", self.peer, error)
            self.close(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                message = self._outbox.popleft()
                await self._context.write(message)
                self._outbox_bytes -= len(message)
            if self._last_words is not None and not self._end.done():
                self._end.set_result(self._last_words)
