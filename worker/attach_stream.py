"""One Attach stream of the link to the scheduler: opened, written to, ended, and why it ended.

And the knock before it, which tells whether it will be let in.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
import grpc.aio

from protos.channels import KEEPALIVE, dial
from protos.outage import plainly
from protos.trust import Trust

_ATTACH = "/quire.v1.WorkerService/Attach"
_REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
"""Behind the same token, and without effect."""
_MAX_MESSAGE_BYTES = 64 << 20
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    *KEEPALIVE,
    # Each dial stands alone: the library's own backoff must not add to ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

Stream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class RefusedError(Exception):
    """The scheduler will never take this worker; the message is its reason."""


@contextlib.asynccontextmanager
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


async def knock(trust: Trust, scheduler: str) -> tuple[grpc.StatusCode, str]:
    """How the scheduler ends a call that asks for nothing: UNAUTHENTICATED if a worker of this
    trust is not let in; and what it says to that."""
    async with dial(trust, scheduler, _CHANNEL_OPTIONS) as channel:
        call: Stream = channel.stream_stream(_REFLECT)(metadata=trust.metadata)
        try:
            # It may have ended before.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.done_writing()
            return await call.code(), await call.details() or ""
        finally:
            call.cancel()


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
