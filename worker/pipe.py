"""Frames over a socketpair: what joins the executor to its transport child.

A frame is a 4-byte little-endian length and that many bytes. Two frames are not messages:

`MARK`  from the transport: "the stream has ended; are you there?". The executor gives it back, and
        also answers each Welcome with one: "I have reset; whatever follows is of this stream".
`END`   from the executor: "I want to leave". From the transport: "now; you have all that goes
        before".

And from the executor, one begins with `HELLO`: what follows opens streams from now on; and one with
`PACE`: what follows is how long its longest step took.

Neither side may import torch or grpc from here: both processes use this module.
"""

import asyncio
import contextlib
import os
import select
import socket
import struct
import threading
import time

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 18

MARK = b""
END = b"\0"  # no message begins with this byte
HELLO = b"\1"  # nor with this one
PACE = b"\2"  # nor with this one

_SECONDS = struct.Struct("<d")

REFUSED = 2
"""Exit code of a transport child whose hello the scheduler refused: dialling again cannot help."""

LOST = 3
"""Exit code of a transport child that lost the one of another rank."""


STUCK = 4
"""Exit code of a transport child that has ended an executor which did not answer."""


def pace_frame(longest_s: float) -> bytes:
    """What an executor says of its longest step."""
    return PACE + _SECONDS.pack(longest_s)


def said_pace(frame: bytes) -> float:
    """The seconds in a `pace_frame`."""
    longest_s: float = _SECONDS.unpack(frame[len(PACE) :])[0]
    return longest_s


class PipeClosedError(Exception):
    """The other side has gone."""


class Pipe:
    """The executor's end: blocking, with a time limit, woken by signals.

    Args:
        sock: one end of a stream socketpair; owned from now on.
        wake: readable when a signal has arrived (see `signal.set_wakeup_fd`); `receive` then
            returns early so that the caller can look at its flags.
    """

    def __init__(self, sock: socket.socket, wake: socket.socket | None = None) -> None:
        self._sock = sock
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._buffer = bytearray()
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        if wake is not None:
            self._poll.register(wake, select.POLLIN)

    def send(self, frame: bytes) -> None:
        """Sends one frame, from any thread; raises `PipeClosedError` when nobody reads any more."""
        try:
            with self._sending:
                self._sock.sendall(_LENGTH.pack(len(frame)) + frame)
        except OSError as error:
            raise PipeClosedError from error

    def receive(self, timeout_s: float) -> bytes | None:
        """The next frame, or None after `timeout_s` seconds, a signal or `wake` without one.

        Raises `PipeClosedError` when the other side has gone.
        """
        deadline = time.monotonic() + timeout_s
        while (frame := self._take()) is None:
            remaining_ms = max(0.0, deadline - time.monotonic()) * 1e3
            ready = self._poll.poll(remaining_ms)
            if not ready:
                return None
            if any(fd == self._sock.fileno() for fd, _ in ready):
                self._fill()
            else:
                for fd, _ in ready:
                    os.read(fd, 64)
                return None
        return frame

    def wake(self) -> None:
        """From any thread: `receive` returns early."""
        with contextlib.suppress(BlockingIOError):  # it is full, and so awake
            os.write(self._waker, b"\0")

    def close(self) -> None:
        """Closes this end; the other side reads what was sent, then the end.

        What `wake` writes to stays open: another thread may be about to.
        """
        self._sock.close()

    def _take(self) -> bytes | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        frame = bytes(memoryview(self._buffer)[_LENGTH.size : end])
        del self._buffer[:end]
        return frame

    def _fill(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except OSError as error:
            raise PipeClosedError from error
        if not data:
            raise PipeClosedError
        self._buffer += data


class AsyncPipe:
    """The transport's end, on asyncio streams; between two transports, either end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> "AsyncPipe":
        """Takes over a connected stream socket."""
        return cls(*await asyncio.open_connection(sock=sock))

    def post(self, frame: bytes) -> None:
        """Sends one frame without waiting; that the other side has gone is the reader's to see."""
        self._writer.write(_LENGTH.pack(len(frame)) + frame)

    async def send(self, frame: bytes) -> None:
        """Sends one frame, waiting while the other side is far behind.

        Raises `PipeClosedError` when it has gone.
        """
        try:
            self.post(frame)
            await self._writer.drain()
        except OSError as error:
            raise PipeClosedError from error

    async def receive(self) -> bytes:
        """The next frame; raises `PipeClosedError` when the other side has gone."""
        try:
            header = await self._reader.readexactly(_LENGTH.size)
            return await self._reader.readexactly(_LENGTH.unpack(header)[0])
        except (asyncio.IncompleteReadError, OSError) as error:
            raise PipeClosedError from error

    def end_writing(self) -> None:
        """The other side reads what was sent, then the end; this one goes on reading."""
        self._writer.write_eof()

    async def close(self) -> None:
        """Closes this end."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
