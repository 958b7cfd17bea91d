"""Clients of a benchmark: so many streams of server-sent events, read and counted.

Reads bare sockets, because a client that parses what it reads takes longer than who writes it. It
prints how many events have come whenever it is sent a line:

    python -m bench.event_streams --port 8000 --streams 128 --model smollm2
"""

import asyncio
import functools
import json
import os
import sys
from typing import Annotated

import typer
import uvloop

EVENT = b"data: "


class Stream(asyncio.Protocol):
    """One request, and the events that answer it."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self.begun = asyncio.Event()
        self.num_events = 0
        self.num_bytes = 0
        self.num_reads = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Asks."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Counts. No event is cut by a write of ours, so none is counted twice or missed."""
        if not self.begun.is_set():
            self._head += data
            if self._head.startswith(b"HTTP/1.1 ") and not self._head.startswith(b"HTTP/1.1 200"):
                self._give_up(f"refused: {self._head.decode(errors='replace')}")
            self.begun.set()
        self.num_reads += 1
        self.num_bytes += len(data)
        self.num_events += data.count(EVENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """Streams of a benchmark do not end."""
        if exc is not None or not self.begun.is_set():
            self._give_up(f"a stream was lost: {exc}")

    @staticmethod
    def _give_up(reason: str) -> None:
        """At once: an exception in a callback would only be logged."""
        print(reason, file=sys.stderr)
        os._exit(1)


def chat_request(port: int, model: str, index: int) -> bytes:
    """A streamed chat completion that goes on until it is read no more."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": f"Tell me story number {index}."}],
            "max_tokens": 1 << 23,
            "stream": True,
            "seed": index,
            "ignore_eos": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(port: int, streams: int, model: str) -> None:
    """Opens the streams, says so, and answers each line with the counts so far."""
    loop = asyncio.get_running_loop()
    readers = []
    for index in range(streams):
        stream = functools.partial(Stream, chat_request(port, model, index))
        _, reader = await loop.create_connection(stream, "127.0.0.1", port)
        readers.append(reader)
    for reader in readers:
        await reader.begun.wait()
    print("begun", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        counts = {
            "events": sum(reader.num_events for reader in readers),
            "bytes": sum(reader.num_bytes for reader in readers),
            "reads": sum(reader.num_reads for reader in readers),
        }
        print(json.dumps(counts), flush=True)


def main(
    port: Annotated[int, typer.Option(help="Of the server, on loopback.")],
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")],
    model: Annotated[str, typer.Option(help="Name to ask for.")],
) -> None:
    """Reads until its standard input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(port, streams, model))


if __name__ == "__main__":
    typer.run(main)
