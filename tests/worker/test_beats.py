"""The executor's ear for its transport child, and the child's beat, over real pipes."""

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Iterator

import pytest

from worker import beats
from worker.beats import beat, listen

EVERY_S = 0.02
LIMIT_S = 0.2
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "BEAT_S", EVERY_S)


@contextlib.contextmanager
def listening(fd: int, limit_s: float = LIMIT_S) -> Iterator[tuple[threading.Thread, list[str]]]:
    """The thread that listens, and what it has said."""
    said: list[str] = []
    thread = threading.Thread(
        target=listen, args=(fd, lambda: said.append("silent"), limit_s), daemon=True
    )
    thread.start()
    yield thread, said
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_silence_after_a_beat_is_told_once() -> None:
    heard, beating = os.pipe()
    with listening(heard) as (thread, said):
        os.write(beating, b"\0")
        thread.join(PATIENCE_S)
        assert said == ["silent"]
    os.close(beating)


def test_a_child_that_has_not_beaten_yet_is_still_starting() -> None:
    heard, beating = os.pipe()
    with listening(heard) as (thread, said):
        thread.join(5 * LIMIT_S)
        assert thread.is_alive()
        os.close(beating)
    assert said == []


def test_silence_is_counted_in_pieces_since_the_last_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not by a clock: stopped together with the child, it must not blame that when both go on."""
    heard, beating = os.pipe()
    os.write(beating, b"\0")
    beats_at, num_polls = (1, 11), 0

    class Scripted:
        """A poll that finds a beat at these calls alone, and takes no time."""

        def register(self, fd: int, events: int) -> None:
            assert fd == heard

        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            nonlocal num_polls
            num_polls += 1
            if num_polls in beats_at:
                os.write(beating, b"\0")
                return [(heard, select.POLLIN)]
            return []

    monkeypatch.setattr("worker.beats.select.poll", Scripted)
    told_at: list[int] = []
    listen(heard, lambda: told_at.append(num_polls), limit_s=10 * EVERY_S)
    assert told_at == [21], "after ten pieces in a row"
    os.close(beating)


async def test_it_beats_until_nobody_reads_any_more() -> None:
    heard, beating = os.pipe()
    task = asyncio.create_task(beat(beating))
    for _ in range(3):
        assert await asyncio.to_thread(os.read, heard, 1) == b"\0"
    os.close(heard)
    async with asyncio.timeout(PATIENCE_S):
        await task


async def test_a_reader_that_stands_still_stops_no_beat() -> None:
    heard, beating = os.pipe()
    os.set_blocking(beating, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(beating, bytes(4096)):
            pass
    task = asyncio.create_task(beat(beating))
    await asyncio.sleep(5 * EVERY_S)
    assert not task.done()
    os.close(heard)
    async with asyncio.timeout(PATIENCE_S):
        await task
