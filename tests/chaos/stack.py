"""A stack under test: its processes by name, and what it says of itself."""

import asyncio
import contextlib
import json
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from quire.client.state import fetch_state
from quire.errors import RequestFailed
from quire.registry import ProcessRecord, StackRecord
from tests.e2e.server import Server, serve

PATIENCE_S = 60.0
MAX_MODEL_LEN = 1024


class Stack(ABC):
    """Processes that together answer at one URL."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Of the API."""

    @property
    @abstractmethod
    def scheduler(self) -> str:
        """Target of its SchedulerService."""

    @abstractmethod
    def processes(self) -> dict[str, ProcessRecord]:
        """By name, as the supervisor knows them now."""

    def pid(self, name: str) -> int:
        """Of a process that runs."""
        pid = self.processes()[name].pid
        assert pid is not None, f"{name} does not run"
        return pid

    def transport_of(self, name: str) -> int:
        """The process that holds a worker's connection."""
        [link] = [
            child.pid
            for child in psutil.Process(self.pid(name)).children()
            if "worker.link" in child.cmdline()
        ]
        return int(link)

    def signal(self, name: str, number: signal.Signals) -> int:
        """To one process, and not to what it started; returns its id."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    async def until_replaced(self, name: str, pid: int) -> None:
        """Another process serves in the place of this one."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                now = self.processes()[name]
                if now.state == "ready" and now.pid != pid:
                    return
                await asyncio.sleep(0.05)

    async def state(self) -> dict[str, Any]:
        """The scheduler's totals. Raises RequestFailed."""
        return await fetch_state(self.scheduler)

    async def tokens_held(self, pid: int) -> int:
        """Room that sequences take in the KV blocks of the replica that this process is of."""
        [replica] = await self._replicas_of(pid)
        return int(replica["blocks"]["used"] * replica["block_size"])

    async def num_running(self, pid: int) -> int:
        """Sequences that run at the replica that this process is of."""
        [replica] = await self._replicas_of(pid)
        return int(replica["running"])

    async def until_whole(self, num_replicas: int = 2) -> None:
        """Every replica is attached and every router is ready."""
        await self.until_attached(num_replicas)
        await self.until_routers_are_ready()

    async def until_attached(self, num_replicas: int) -> None:
        """The scheduler has so many replicas."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(RequestFailed):
                    if len((await self.state())["replicas"]) == num_replicas:
                        return
                await asyncio.sleep(0.05)

    async def until_lost(self, pid: int) -> None:
        """The scheduler has no replica that this process is of."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._replicas_of(pid):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _replicas_of(self, pid: int) -> list[dict[str, Any]]:
        return [one for one in (await self.state())["replicas"] if pid in one["pids"]]

    async def until_queued(self, count: int) -> None:
        """So many sequences wait in the scheduler."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.state())["waiting"] < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_idle(self) -> dict[str, Any]:
        """The scheduler's totals, once nothing is left of any request."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            state = await self.state()
            left = (state["running"], state["waiting"], state["blocks"]["used"])
            if left == (0, 0, 0):
                blocks = state["blocks"]
                assert blocks["free"] + blocks["cached"] == blocks["total"]
                return state
            assert time.monotonic() < deadline, f"still running, waiting, blocks used: {left}"
            await asyncio.sleep(0.02)

    def metric(self, name: str, part: str) -> float:
        """The sum of a process's samples whose line has this in it."""
        url = self.processes()[name].metrics or f"{self.url}/metrics"
        lines = httpx.get(url, timeout=30).text.splitlines()
        found = [line for line in lines if part in line and not line.startswith("#")]
        assert found, f"{name} has no metric {part}"
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def router_urls(self) -> list[str]:
        """Of each one's own door."""
        return [
            (process.metrics or self.url).removesuffix("/metrics")
            for process in self.processes().values()
            if process.role == "router"
        ]

    async def until_routers_are_ready(self) -> None:
        """Each of them."""
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(timeout=5) as client:
            while True:
                routers = [one for one in self.processes().values() if one.role == "router"]
                with contextlib.suppress(httpx.HTTPError):
                    urls = self.router_urls()  # one that starts has no door of its own yet
                    answers = [await client.get(f"{url}/ready") for url in urls]
                    if all(one.state == "ready" for one in routers) and all(
                        answer.is_success for answer in answers
                    ):
                        return
                await asyncio.sleep(0.05)


@dataclass
class Served(Stack):
    """`quire serve`, seen from outside."""

    server: Server
    runtime_dir: Path

    @property
    def url(self) -> str:
        """See `Stack`."""
        return self.server.url

    @property
    def scheduler(self) -> str:
        """See `Stack`."""
        return self._record().scheduler

    def processes(self) -> dict[str, ProcessRecord]:
        """See `Stack`."""
        return {process.name: process for process in self._record().processes}

    def _record(self) -> StackRecord:
        """What its supervisor tells `quire ps`."""
        [path] = (self.runtime_dir / "stacks").glob("*.json")
        fields = json.loads(path.read_text())
        processes = tuple(ProcessRecord(**process) for process in fields.pop("processes"))
        return StackRecord(**fields, processes=processes)


@contextlib.contextmanager
def running(model: str | Path, runtime_dir: Path, *flags: str) -> Iterator[Served]:
    """A stack with these flags; every process that it started has gone at the end."""
    with serve(model, runtime_dir, "--max-model-len", str(MAX_MODEL_LEN), *flags) as server:
        started = psutil.Process(server.process.pid)
        try:
            yield Served(server, runtime_dir)
        finally:
            left = started.children(recursive=True)
            for process in left:  # one that is stopped cannot end in order
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive, alive
