"""What bounds a router in Python from above: a server that only writes.

It answers every request with a stream of the same ready-made event, one to each connection in each
step: uvloop's `transport.write`, the kernel's `send`, and nothing else. Prints its port.

    python -m bench.bare_writer --steps-per-s 40
"""

import asyncio
from typing import Annotated

import typer
import uvloop

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef01234567","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"smollm2","choices":[{"index":0,"delta":{"content":" token"},'
    b'"finish_reason":null,"logprobs":null}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)


class Writer(asyncio.Protocol):
    """One connection; `open_writers` has it while it is open."""

    def __init__(self, open_writers: "set[asyncio.Transport]") -> None:
        self._open_writers = open_writers
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Any request is answered alike."""
        assert self._transport is not None
        if self._transport not in self._open_writers:
            self._transport.write(HEAD)
            self._open_writers.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It left."""
        assert self._transport is not None
        self._open_writers.discard(self._transport)


async def serve(steps_per_s: float) -> None:
    """Writes to everybody at each step, for ever."""
    loop = asyncio.get_running_loop()
    open_writers: set[asyncio.Transport] = set()
    server = await loop.create_server(lambda: Writer(open_writers), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    next_step_at = loop.time()
    while True:
        for transport in open_writers:
            transport.write(CHUNK)
        next_step_at = max(next_step_at + 1 / steps_per_s, loop.time())
        await asyncio.sleep(next_step_at - loop.time())


def main(
    steps_per_s: Annotated[float, typer.Option(help="Events a second on each connection.")],
) -> None:
    """Serves until it is ended."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(steps_per_s))


if __name__ == "__main__":
    typer.run(main)
