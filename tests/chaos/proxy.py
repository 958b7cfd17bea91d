"""A network between two processes, made of one TCP proxy that does as it is told.

Delay, loss, a silence in one direction or in both, and a cut. It stands where `tc netem` and a
packet filter would: the kernel of a test machine need not have them, and only root may use them.
TCP shows a lost packet to its users as a delay until it is sent again, in order; so that is what
loss is here.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.chaos.stack import PATIENCE_S

_CHUNK_BYTES = 1 << 16
RETRANSMISSION_S = 0.2
"""The least time in which Linux sends a lost packet again."""


@dataclass
class Conditions:
    """Of the way, in both directions; a test changes them as it goes."""

    delay_s: float = 0.0
    loss: float = 0.0
    """Share of the chunks that need to be sent again."""
    is_refusing: bool = False
    """Nobody gets through who dials now."""
    silent_up: bool = False
    """What the dialling side says stays on the way, until it heals."""
    silent_down: bool = False


@dataclass
class Proxy:
    """Listens on `address` and goes on to `target`."""

    target: str
    now: Conditions = field(default_factory=Conditions)
    num_dialled: int = 0
    num_refused: int = 0
    _port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _dice: random.Random = field(default_factory=lambda: random.Random(0))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        """What to dial."""
        return f"127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Resets every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def fall_silent(self, *, up: bool = True, down: bool = True) -> None:
        """A half-open connection: what is said does not arrive, and nobody is told."""
        self.now.silent_up, self.now.silent_down = up, down

    def heal(self) -> None:
        """The way is as good as it gets."""
        self.now = Conditions()
        self._changed.set()
        self._changed = asyncio.Event()

    async def until_refused(self) -> None:
        """Somebody dials, from now on, and does not get through."""
        before = self.num_refused
        async with asyncio.timeout(PATIENCE_S):
            while self.num_refused == before:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def serve(self, ours: asyncio.StreamReader, our_writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.num_dialled += 1
        self._writers.add(our_writer)
        try:
            if self.now.is_refusing:
                self.num_refused += 1
                return
            host, _, port = self.target.rpartition(":")
            theirs, their_writer = await asyncio.open_connection(host, int(port))
            self._writers.add(their_writer)
            try:
                up = asyncio.create_task(self._pump(ours, their_writer, goes_up=True))
                down = asyncio.create_task(self._pump(theirs, our_writer, goes_up=False))
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
            finally:
                self._writers.discard(their_writer)
                their_writer.transport.abort()
        except OSError:
            pass  # nobody is there: the dialling side sees a closed connection
        finally:
            self._writers.discard(our_writer)
            our_writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, goes_up: bool
    ) -> None:
        """Each chunk leaves `delay_s` after it came, however many are on the way, in order."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)
        loop = asyncio.get_running_loop()

        async def read() -> None:
            while data := await reader.read(_CHUNK_BYTES):
                late = RETRANSMISSION_S if self._dice.random() < self.now.loss else 0.0
                await on_the_way.put((loop.time() + self.now.delay_s + late, data))
            await on_the_way.put((loop.time() + self.now.delay_s, b""))

        reading = asyncio.create_task(read())
        try:
            with contextlib.suppress(OSError):
                while True:
                    due_at, data = await on_the_way.get()
                    await asyncio.sleep(due_at - loop.time())
                    while self.now.silent_up if goes_up else self.now.silent_down:
                        await self._changed.wait()
                    if not data:
                        return
                    writer.write(data)
                    await writer.drain()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """A way to `target`, good until told otherwise."""
    way = Proxy(target)
    server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    way._port = server.sockets[0].getsockname()[1]
    try:
        yield way
    finally:
        server.close()
        way.heal()
        way.cut()
        await asyncio.sleep(0)
