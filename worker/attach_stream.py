"""One Attach stream of the link to the scheduler: opened, written to, ended, and why it ended."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import grpc.aio

from protos.channels import dial
from protos.outage import plainly
from protos.trust import Trust

_ATTACH = "/quire.v1.WorkerService/Attach"
_FIRST_BACKOFF_S = 0.1
_EAGER_BACKOFF_S = 0.25
_NUM_EAGER = 60
"""Dials at that pace: a scheduler that is started again is back within seconds, and every stream
waits for it meanwhile."""
_MAX_BACKOFF_S = 5.0
_MAX_MESSAGE_BYTES = 64 << 20
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 15 s even when nothing is in flight.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # whose default, a minute, is what counts otherwise
    ("grpc.http2.max_pings_without_data", 0),
    # Each dial stands alone: the library's own backoff must not add to ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

Stream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class RefusedError(Exception):
    """The scheduler will never take this worker; the message is its reason."""


@asynccontextmanager
async def open_stream(trust: Trust, scheduler: str) -> AsyncIterator[Stream]:
    """Dials; the stream is cancelled at the end of the context."""
    async with dial(trust, scheduler, _CHANNEL_OPTIONS) as channel:
        stream: Stream = channel.stream_stream(_ATTACH)(metadata=trust.metadata)
        try:
            yield stream
        finally:
            stream.cancel()


async def why_ended(stream: Stream) -> str:
    """In words for people; raises `RefusedError` when dialling again cannot help."""
    code, details = await stream.code(), await stream.details()
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        raise RefusedError(details or "it gave no reason")
    return plainly(code.name, details)


async def write(stream: Stream, frame: bytes) -> None:
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


async def half_close(stream: Stream, limit_s: float) -> bool:
    """Lets the scheduler end the stream, so that no result is cut off; whether it has, in time."""
    try:
        async with asyncio.timeout(limit_s):
            await stream.done_writing()
            await stream.code()
    except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    return True


def backoff() -> Iterator[float]:
    """Seconds before each next dial, spread by half: short for a while, then up to a limit."""
    delay = _FIRST_BACKOFF_S
    for num_dials in itertools.count(1):
        yield delay * random.uniform(0.5, 1.0)
        limit = _EAGER_BACKOFF_S if num_dials < _NUM_EAGER else _MAX_BACKOFF_S
        delay = min(2 * delay, limit)
