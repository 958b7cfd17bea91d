"""Notices processes that live and do nothing: those that are stopped, those that fell silent.

*Stopped*: the kernel says so (SIGSTOP, SIGTSTP) of a process or of any that it started, look after
look. A debugger's stop is another state, and nothing is made of it.

*Silent*: a scheduler or a router that has answered its health check before does so no more. Only
what was waited for in vain counts: a connection that is refused at once is that of a process that
leaves, and one that never answered may be where nobody here can reach it. Workers are not asked:
the scheduler sets each of their steps a deadline, and their own link ends them.

Time is counted in short pieces that were really waited. So a supervisor that was itself suspended
accuses nobody when it goes on, and a machine that is slow for all is slow for who counts, too.
"""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from quire.process import Ready

LOOK_EVERY_S = 2.0
"""At the states of processes."""
ASK_EVERY_S = 2.0
PIECE_S = 0.5
"""In which silence is counted."""

_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)  # ends with its channel
_STOPPED = "T"  # a debugger's is "t"

Ask = Callable[[], Awaitable[bool]]
"""Asks a process for its health; whether it answered, whatever it said."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a process may be idle in these ways; 0: for ever."""

    stopped_s: float = 4.0
    silent_s: float = 30.0

    @classmethod
    def of(cls, hang_timeout_s: float) -> "Patience":
        """As `--hang-timeout` has it; whoever is stopped need not be waited for that long."""
        return cls(min(cls().stopped_s, hang_timeout_s), hang_timeout_s)


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """The processes of this machine at one moment; none where there is no /proc."""

    states: dict[int, str]
    """By process id, the kernel's letter."""
    children: dict[int, list[int]]

    @classmethod
    def now(cls) -> "ProcessTree":
        """Reads it."""
        states: dict[int, str] = {}
        children = defaultdict(list)
        for pid in _all_pids():
            try:
                stat = Path(f"/proc/{pid}/stat").read_bytes()
                state, parent = stat.rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue  # it has ended
            states[pid] = state.decode()
            children[int(parent)].append(pid)
        return cls(states, dict(children))

    def below(self, pid: int) -> list[int]:
        """The process and all that it started, and they."""
        found = [pid]
        for one in found:  # grows meanwhile
            found += self.children.get(one, [])
        return found

    def stopped_below(self, pid: int) -> list[int]:
        """Those that are stopped."""
        return [one for one in self.below(pid) if self.states.get(one) == _STOPPED]


class StoppedWatch:
    """Who has been stopped for long; looks are `LOOK_EVERY_S` apart."""

    def __init__(self, stopped_s: float) -> None:
        self._stopped_s = stopped_s
        self._looks: Counter[int] = Counter()
        """In a row at which a process was stopped."""

    def look(self, tree: ProcessTree, pids: Iterable[int]) -> dict[int, str]:
        """Which of these processes have been stopped, or something that they started, for long
        enough; and why that is said."""
        stopped = {one: pid for pid in pids for one in tree.stopped_below(pid)}
        self._looks = Counter({one: self._looks[one] + 1 for one in stopped})
        found = {}
        for one, pid in stopped.items():
            # The first look may come right after the stop.
            seconds = (self._looks[one] - 1) * LOOK_EVERY_S
            if seconds >= self._stopped_s:
                found[pid] = f"process {one} has been stopped for {seconds:g} s"
        return found


async def until_silent(ask: Ask, patience_s: float) -> None:
    """Returns when a process that has answered was asked in vain for `patience_s` together."""
    has_answered, silent_s = False, 0.0
    while True:
        asked = asyncio.ensure_future(ask())
        try:
            while not asked.done():
                done, _ = await asyncio.wait({asked}, timeout=PIECE_S)
                if has_answered and not done:
                    silent_s += PIECE_S
                    if silent_s >= patience_s:
                        return
            if asked.result():
                has_answered, silent_s = True, 0.0
        finally:
            asked.cancel()
        await asyncio.sleep(ASK_EVERY_S)


@contextlib.asynccontextmanager
async def health_of(role: str, ready: Ready) -> AsyncIterator[Ask | None]:
    """How a process that serves is asked, over a connection of its own that stays open: who has
    run out of those still answers. None: this one is not asked."""
    if role == "scheduler":
        async with _over_grpc(ready.address) as ask:
            yield ask
    elif role == "router":
        async with _over_http(ready) as ask:
            yield ask
    else:
        yield None


@contextlib.asynccontextmanager
async def _over_grpc(address: str) -> AsyncIterator[Ask]:
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    no_answer = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def ask() -> bool:
            try:
                await stub.Check(health_pb2.HealthCheckRequest())
            except grpc.aio.AioRpcError as error:
                return error.code() not in no_answer
            return True

        yield ask


@contextlib.asynccontextmanager
async def _over_http(ready: Ready) -> AsyncIterator[Ask]:
    import aiohttp

    connector: aiohttp.BaseConnector
    if ready.metrics is not None:
        url, connector = ready.metrics.removesuffix("/metrics"), aiohttp.TCPConnector(ssl=False)
    else:
        path = ready.address.removeprefix("unix:")
        url, connector = "http://localhost", aiohttp.UnixConnector(path)
    timeout = aiohttp.ClientTimeout(total=None)  # the counting is ours
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def ask() -> bool:
            try:
                async with session.get(f"{url}/health") as response:
                    await response.read()
            except (aiohttp.ClientError, OSError):
                return False
            return True

        yield ask


def _all_pids() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except FileNotFoundError:
        return []
