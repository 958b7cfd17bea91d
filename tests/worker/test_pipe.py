"""Frames survive splits and joins; ends, time-outs and signals are told apart."""

import socket
import threading
from collections.abc import Iterator

import pytest

from worker.pipe import AsyncPipe, Pipe, PipeClosedError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


def test_frames_arrive_whole_and_in_order_however_they_are_cut(ends: Ends) -> None:
    pipe = Pipe(ends[0])
    frames = [b"", b"a", b"bc" * 100, b""]
    stream = b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)
    received = []
    for place in range(len(stream)):
        ends[1].sendall(stream[place : place + 1])
        frame = pipe.receive(0.0)
        if frame is not None:
            received.append(frame)
    assert received == frames
    ends[1].sendall(stream)
    assert [pipe.receive(0.0) for _ in range(5)] == [*frames, None]


def test_a_frame_larger_than_any_buffer(ends: Ends) -> None:
    ends[1].setblocking(False)
    frame = bytes(range(256)) * 8000
    stream = memoryview(len(frame).to_bytes(4, "little") + frame)
    pipe, received = Pipe(ends[0]), None
    while received is None:
        if stream:
            stream = stream[ends[1].send(stream) :]
        received = pipe.receive(0.0)
    assert received == frame


def test_another_thread_can_wake_it(ends: Ends) -> None:
    pipe = Pipe(ends[0])
    threading.Thread(target=pipe.wake).start()
    assert pipe.receive(3600.0) is None
    ends[1].sendall(b"\x01\x00\x00\x00x")
    assert pipe.receive(3600.0) == b"x", "it stays awake"
    pipe.close()
    pipe.wake()


def test_the_end_comes_after_the_last_frame(ends: Ends) -> None:
    pipe = Pipe(ends[0])
    ends[1].sendall(b"\x01\x00\x00\x00x")
    ends[1].close()
    assert pipe.receive(1.0) == b"x"
    with pytest.raises(PipeClosedError):
        pipe.receive(1.0)
    with pytest.raises(PipeClosedError):
        pipe.send(b"y")


def test_a_signal_ends_the_wait(ends: Ends) -> None:
    wake, waker = socket.socketpair()
    with wake, waker:
        pipe = Pipe(ends[0], wake)
        waker.send(b"\x0f")
        assert pipe.receive(3600.0) is None
        ends[1].sendall(b"\x01\x00\x00\x00x")
        assert pipe.receive(3600.0) == b"x"


async def test_both_kinds_of_end_understand_each_other(ends: Ends) -> None:
    pipe, other = Pipe(ends[0]), await AsyncPipe.open(ends[1])
    pipe.send(b"up")
    pipe.send(b"")
    assert [await other.receive(), await other.receive()] == [b"up", b""]
    await other.send(b"down" * 1000)
    assert pipe.receive(5.0) == b"down" * 1000
    pipe.close()
    with pytest.raises(PipeClosedError):
        await other.receive()
    await other.close()
