"""A stream against a peer that speaks, listens and hangs up when the test says so."""

import asyncio
from typing import Any, cast

import grpc
import pytest

from scheduler.stream import Context, Stream
from tests.scheduler.peers import eventually, within_time

GONE = (grpc.StatusCode.UNAVAILABLE, "gone")


class FakePeer:
    """The other end, as gRPC shows it to a handler."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[Any] = asyncio.Queue()
        self.listens = asyncio.Event()
        self.heard: list[bytes] = []
        self.status: tuple[grpc.StatusCode, str] | None = None

    async def read(self) -> Any:
        return await self.says.get()

    async def write(self, message: bytes) -> None:
        await self.listens.wait()
        self.heard.append(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = (code, details)


def stream_to(peer: FakePeer, max_outbox_bytes: int = 100) -> Stream:
    return Stream(cast(Context, peer), max_outbox_bytes=max_outbox_bytes)


async def drop(_message: bytes) -> None:
    raise AssertionError("nothing may be received after the end")


@pytest.mark.parametrize("last", [b"a message", grpc.aio.EOF])
async def test_what_was_queued_is_written_whatever_the_peer_still_says(last: object) -> None:
    peer = FakePeer()
    stream = stream_to(peer)
    running = asyncio.create_task(stream.run(drop))
    for message in (b"1", b"2", b"3"):
        stream.send(message)
    stream.close_after_outbox(*GONE)
    stream.send(b"too late")
    peer.says.put_nowait(last)
    await eventually(peer.says.empty)
    await asyncio.sleep(0)  # the reader has had its turn
    await asyncio.sleep(0)

    peer.listens.set()
    await within_time(running)
    await stream.finish()

    assert peer.heard == [b"1", b"2", b"3"]
    assert peer.status == GONE


async def test_a_close_drops_what_is_unsent() -> None:
    peer = FakePeer()
    stream = stream_to(peer)
    running = asyncio.create_task(stream.run(drop))
    stream.send(b"1")
    stream.close(*GONE)
    await within_time(running)
    await stream.finish()
    assert (peer.heard, peer.status) == ([], GONE)


async def test_too_much_unread_ends_the_stream() -> None:
    peer = FakePeer()
    stream = stream_to(peer, max_outbox_bytes=10)
    running = asyncio.create_task(stream.run(drop))
    stream.send(bytes(10))
    stream.send(bytes(1))
    await within_time(running)
    await stream.finish()
    assert peer.status is not None
    assert peer.status[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "11 bytes are unread; at most 10 wait" in peer.status[1]
