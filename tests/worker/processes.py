"""Real worker processes for tests."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.worker.fake_scheduler import PATIENCE_S


@dataclass
class Worker:
    """A running worker process."""

    process: asyncio.subprocess.Process

    async def ready(self) -> dict[str, object]:
        """What its ready line says."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await self.process.stdout.readline()).decode()
        assert line.startswith("quire-ready ")
        ready: dict[str, object] = json.loads(line.removeprefix("quire-ready "))
        return ready

    async def end(self) -> tuple[int | None, str, str]:
        """Exit code, the rest of its output, and its log."""
        async with asyncio.timeout(PATIENCE_S):
            output, log = await self.process.communicate()
        return self.process.returncode, output.decode(), log.decode()


@asynccontextmanager
async def running_worker(*arguments: object, module: str = "worker") -> AsyncIterator[Worker]:
    metrics = () if "--metrics-port" in arguments else ("--metrics-port", 0)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, "--device", "cpu", "--threads", "1"),
        *(str(argument) for argument in (*metrics, *arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
