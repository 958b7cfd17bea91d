"""Processes come in any order: whoever is early waits for the others, and says that it does."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.chaos.small import small_model
from tests.ports import free_port
from tests.router.test_process import running

pytestmark = pytest.mark.chaos


async def test_the_scheduler_comes_last(tmp_path: Path) -> None:
    model = str(small_model(tmp_path / "small"))
    address = f"127.0.0.1:{free_port()}"
    started = []

    async def start(module: str, *arguments: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "--metrics-port", "0", *arguments),
            stdout=subprocess.DEVNULL,
        )
        started.append(process)
        return process

    dials = ("--model", model, "--scheduler", address)
    try:
        async with (
            running(*dials) as router,
            httpx.AsyncClient(base_url=router.ready["address"], timeout=60) as http,
        ):
            worker = await start("worker", *dials, "--threads", "1")
            await asyncio.sleep(3)
            early = await http.post("/v1/completions", json={"prompt": "xyz", "max_tokens": 2})
            assert early.status_code == 503
            assert int(early.headers["retry-after"]) >= 1
            assert (await http.get("/health")).status_code == 200
            assert worker.returncode is None
            await start("scheduler", "--listen", address)
            async with asyncio.timeout(60):
                while not (await http.get("/ready")).is_success:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            late = await http.post("/v1/completions", json={"prompt": "xyz", "max_tokens": 2})
            assert late.status_code == 200
            assert worker.returncode is None
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
                await process.wait()
