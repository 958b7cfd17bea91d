"""A router that runs out of something: room for its log, descriptors, memory. Real processes; what
they cannot do they refuse, and they go on."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import IO

import httpx
import psutil
import pytest

from router.body import ROOM_BYTES
from tests.router.conftest import until
from tests.router.fake_scheduler import FakeScheduler
from tests.router.test_process import Process, running

NUM_DESCRIPTORS = 96
MIB = 1 << 20
BODY_BYTES = 4 * MIB
MOST_BYTES = ROOM_BYTES * 3 // 2
XYZ = {"prompt": "xyz", "max_tokens": 3}
UPLOAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)


async def nothing_left(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    """Whatever was asked has ended, for the router and for the scheduler."""
    async with asyncio.timeout(20):
        while True:
            lines = (await http.get("/metrics")).text.splitlines()
            [in_flight] = [line for line in lines if line.startswith("quire:requests_in_flight{")]
            if float(in_flight.rpartition(" ")[2]) == 0 and not scheduler.running:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("disk", ["full", "gone"])
async def test_a_log_that_cannot_be_written(
    model_dir: Path, served: tuple[FakeScheduler, str], disk: str
) -> None:
    """A full disk, or whoever read its log has ended. Lines are lost, requests are not."""
    scheduler, address = served
    with _unwritable(disk) as log:
        async with (
            running("--model", str(model_dir), "--scheduler", address, stderr=log) as router,
            httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
        ):
            await until(lambda: scheduler.num_canaries > 0)
            scheduler.error = "nothing works"
            failed = await http.post("/v1/completions", json=XYZ | {"stream": True})
            assert "nothing works" in failed.text  # which is logged
            scheduler.error = None
            assert (await http.post("/v1/completions", json=XYZ)).status_code == 200
            await nothing_left(http, scheduler)
            router.process.terminate()
            assert await router.end() == 0


@contextlib.contextmanager
def _unwritable(disk: str) -> Iterator[IO[bytes] | int]:
    if disk == "full":
        with Path("/dev/full").open("wb") as log:
            yield log
        return
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


async def test_no_descriptor_is_left(model_dir: Path, served: tuple[FakeScheduler, str]) -> None:
    """Who is connected is served; who comes is refused or waits, until others leave."""
    if which("prlimit") is None:
        pytest.skip("no `prlimit` command")
    scheduler, address = served
    limited = ("prlimit", f"--nofile={NUM_DESCRIPTORS}")
    async with (
        running("--model", str(model_dir), "--scheduler", address, within=limited) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        assert (await http.get("/health")).status_code == 200
        url = httpx.URL(router.ready["address"])
        crowd = [await asyncio.open_connection(url.host, url.port) for _ in range(NUM_DESCRIPTORS)]
        assert await _num_open(router) == NUM_DESCRIPTORS
        for _ in range(4):
            assert (await http.post("/v1/completions", json=XYZ)).status_code == 200
        for _, writer in crowd:
            writer.close()
        async with asyncio.timeout(20):
            while await _num_open(router) >= NUM_DESCRIPTORS - 8:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with httpx.AsyncClient(base_url=url, timeout=20) as newcomer:
            assert (await newcomer.post("/v1/completions", json=XYZ)).status_code == 200
            await nothing_left(newcomer, scheduler)


async def _num_open(router: Process) -> int:
    """Its descriptors, once their number stays."""
    process, before = psutil.Process(router.ready["pid"]), -1
    while (now := process.num_fds()) != before:
        before = now
        await asyncio.sleep(0.2)
    return now


async def test_many_large_bodies_at_once(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    """Each within its limit, none complete: what is held of them all has a limit of its own, and
    small ones are read meanwhile. The kernel gives the process no more than that."""
    scheduler, address = served
    limits = ("--max-body-bytes", str(BODY_BYTES))
    async with (
        running("--model", str(model_dir), "--scheduler", address, *limits) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        process = psutil.Process(router.ready["pid"])
        before = process.memory_info().rss
        _limit_memory(process, MOST_BYTES)
        url = httpx.URL(router.ready["address"])
        writers = []
        for _ in range(64):
            _, writer = await asyncio.open_connection(url.host, url.port)
            writers.append(writer)
            writer.write(UPLOAD % BODY_BYTES + bytes(BODY_BYTES - 1))
        most = 0
        for _ in range(20):
            most = max(most, process.memory_info().rss - before)
            await asyncio.sleep(0.1)
        print(f"\n{len(writers)} bodies of {BODY_BYTES / MIB:g} MiB: {most / MIB:.0f} MiB more")
        assert (await http.post("/v1/completions", json=XYZ)).status_code == 200
        for writer in writers:
            writer.close()
        assert most < MOST_BYTES
        large = {"prompt": "x" * (BODY_BYTES // 2)}
        async with asyncio.timeout(20):
            while (await http.post("/v1/completions", json=large)).status_code != 400:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await nothing_left(http, scheduler)


async def test_large_bodies_are_gone_once_they_are_parsed(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    """However long their requests go on."""
    scheduler, address = served
    limits = ("--max-body-bytes", str(BODY_BYTES))
    body = json.dumps(XYZ).encode().ljust(BODY_BYTES - 1)
    headers = {"content-type": "application/json"}
    async with (
        running("--model", str(model_dir), "--scheduler", address, *limits) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=60) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)

        def post() -> "asyncio.Task[httpx.Response]":
            return asyncio.create_task(http.post("/v1/completions", content=body, headers=headers))

        assert (await post()).status_code == 200
        before = psutil.Process(router.ready["pid"]).memory_info().rss
        scheduler.hold_at = 1
        scheduler.submits.clear()
        asking = []
        for number in range(48):
            asking.append(post())
            await until(lambda: len(scheduler.submits) == number + 1)  # noqa: B023
        more = psutil.Process(router.ready["pid"]).memory_info().rss - before
        scheduler.hold_at = None
        assert {response.status_code for response in await asyncio.gather(*asking)} == {200}
        assert more < len(asking) * BODY_BYTES // 4


def _limit_memory(process: psutil.Process, num_more_bytes: int) -> None:
    """From now on a process gets so much more, and then MemoryError."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return  # no Linux
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmData")]
    limit = int(line.split()[1]) * 1024 + num_more_bytes
    process.rlimit(psutil.RLIMIT_DATA, (limit, limit))


async def test_a_body_far_over_the_limit_is_not_kept(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    scheduler, address = served
    limits = ("--max-body-bytes", str(MIB))
    async with (
        running("--model", str(model_dir), "--scheduler", address, *limits) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=60) as http,
    ):
        process = psutil.Process(router.ready["pid"])
        await http.get("/health")
        before = process.memory_info().rss
        headers = {"content-type": "application/json"}
        for _ in range(8):
            with contextlib.suppress(httpx.HTTPError):  # it may hang up before all is sent
                answer = await http.post(
                    "/v1/completions", content=bytes(64 * MIB), headers=headers
                )
                assert answer.status_code in (413, 503)
        assert process.memory_info().rss - before < 32 * MIB
        assert (await http.get("/health")).status_code == 200
        await nothing_left(http, scheduler)
