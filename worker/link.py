"""The transport child: one Attach stream to the scheduler, kept alive, in a process of its own.

gRPC beside a busy Python thread answers in milliseconds, because both want the interpreter lock.
So the executor owns the device and this process owns the network; serialized messages pass through
untouched in both directions, and only the executor knows what they mean.

    scheduler ◀─ Attach stream (grpc.aio, uvloop) ─▶ link ◀─ frames over a socketpair ─▶ executor

The executor's first frame is its Hello: it opens every stream. When a stream breaks the link dials
again, with backoff. What the executor produced before it saw the new stream's Welcome is stale: the
executor answers each Welcome with an empty frame, and the link drops everything before that mark.

The link outlives nothing: when the executor goes, the link ends the stream and exits, so that the
scheduler learns of it at once. Exit codes: 0 the executor has gone, 2 the scheduler refused the
hello for good (FAILED_PRECONDITION).
"""

import argparse
import asyncio
import contextlib
import logging
import random
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TypeAlias

import grpc
import grpc.aio
import uvloop

from worker import logs
from worker.pipe import MARK, REFUSED, AsyncPipe, PipeClosedError

log = logging.getLogger(__name__)

ATTACH = "/quire.v1.WorkerService/Attach"
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_FAREWELL_S = 1.0
_MAX_MESSAGE_BYTES = 64 << 20
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 15 s even when nothing is in flight.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each dial stands alone: the library's own backoff must not add to ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

_Stream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class RefusedError(Exception):
    """The scheduler will never take this worker; the message is its reason."""


class Link:
    """Moves frames between the executor and whichever stream is open."""

    def __init__(self, pipe: AsyncPipe, scheduler: str) -> None:
        self._pipe = pipe
        self._scheduler = scheduler
        self._hello = b""
        self._stream: _Stream | None = None
        self._num_welcomes = 0
        self._num_marks = 0

    async def run(self) -> None:
        """Serves until the executor goes; raises `RefusedError` when the scheduler refuses it."""
        self._hello = await self._pipe.receive()
        dialling = asyncio.create_task(self._keep_dialling())
        pumping = asyncio.create_task(self._pump_results())
        await asyncio.wait({dialling, pumping}, return_when=asyncio.FIRST_COMPLETED)
        if pumping.done():
            await self._say_farewell()
        for task in (dialling, pumping):
            task.cancel()
        outcomes = await asyncio.gather(dialling, pumping, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, PipeClosedError):
                raise outcome

    async def _pump_results(self) -> None:
        """Executor to scheduler; ends with `PipeClosedError` when the executor goes."""
        while True:
            frame = await self._pipe.receive()
            if frame == MARK:
                self._num_marks += 1
            elif self._stream is not None and self._num_marks == self._num_welcomes:
                await _write(self._stream, frame)

    async def _keep_dialling(self) -> None:
        delays = _backoff()
        while True:
            welcomes = self._num_welcomes
            reason = await self._attach()
            if self._num_welcomes > welcomes:
                delays = _backoff()
            delay = next(delays)
            log.warning(
                "no stream to the scheduler at %s (%s); dialling again in %.1f s",
                self._scheduler,
                reason,
                delay,
            )
            await asyncio.sleep(delay)

    async def _attach(self) -> str:
        """One stream from hello to its end; returns why it ended."""
        async with grpc.aio.insecure_channel(self._scheduler, options=_CHANNEL_OPTIONS) as channel:
            stream: _Stream = channel.stream_stream(ATTACH)()
            try:
                await stream.write(self._hello)
                while isinstance(message := await stream.read(), bytes):
                    if self._stream is None:
                        # The first message is Welcome: from its mark on, results go to this stream.
                        self._num_welcomes += 1
                        self._stream = stream
                    # An executor that has gone is the pump's to notice.
                    with contextlib.suppress(PipeClosedError):
                        await self._pipe.send(message)
                return "the scheduler closed it"
            except asyncio.InvalidStateError:
                return await self._status(stream)  # the hello came too late: it had ended already
            except grpc.aio.AioRpcError:
                return await self._status(stream)
            finally:
                self._stream = None
                stream.cancel()

    async def _status(self, stream: _Stream) -> str:
        """Why a stream ended; raises `RefusedError` when dialling again cannot help."""
        code, details = await stream.code(), await stream.details()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            raise RefusedError(details or "it gave no reason")
        return f"{code.name}: {details}"

    async def _say_farewell(self) -> None:
        """Half-closes the stream and lets the scheduler end it, so that no result is cut off."""
        stream = self._stream
        if stream is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await stream.done_writing()
                await stream.code()
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            log.info("the scheduler did not end the stream; leaving")


async def _write(stream: _Stream, frame: bytes) -> None:
    """Writes a frame; a stream that has ended swallows it, since its reader reports the end."""
    try:
        await stream.write(frame)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    except asyncio.CancelledError:
        # grpc raises this for a stream that was cancelled, too; only a cancelled task may end here.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise


def _backoff() -> Iterator[float]:
    """Seconds before each next dial: doubling up to a limit, spread by half."""
    delay = _FIRST_BACKOFF_S
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(2 * delay, _MAX_BACKOFF_S)


async def _serve(fd: int, scheduler: str) -> int:
    try:
        await Link(await AsyncPipe.open(socket.socket(fileno=fd)), scheduler).run()
    except PipeClosedError:
        return 0
    except RefusedError as error:
        print(f"error: the scheduler at {scheduler} refused this worker: {error}", file=sys.stderr)
        return REFUSED
    return 0


def main() -> int:
    """Runs the link; the executor starts it as `python -m worker.link`."""
    parser = argparse.ArgumentParser(prog="python -m worker.link", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="this side of the socketpair")
    parser.add_argument("--scheduler", required=True, help="address to dial")
    arguments = parser.parse_args()
    logs.configure("worker-link")
    # The executor decides when to leave; the end of the socketpair tells this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    exit_code: int = uvloop.run(_serve(arguments.fd, arguments.scheduler))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
