"""Of two routers on one port one ends: nobody is refused, on old connections or new ones."""

import asyncio
import contextlib
import gc
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from router import ending
from router.readiness import Readiness
from router.server import Router
from router.tls import TlsFiles
from tests.certificates import signed
from tests.ports import free_port
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler, fake_scheduler
from tests.router.test_process import Process, running

PATH = "/v1/completions"
XYZ = {"prompt": "xyz", "max_tokens": 3}
_HEAD = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close"
_BODY = json.dumps(XYZ)
ASK = f"{_HEAD}\r\ncontent-length: {len(_BODY)}\r\n\r\n{_BODY}".encode()


@pytest.fixture
async def routers(model_dir: Path) -> AsyncIterator[tuple[Process, Process]]:
    """Each with a scheduler of its own."""
    told = ["--model", str(model_dir), "--reuse-port", "--metrics-port", "0"]
    told += ["--port", str(free_port()), "--grpc-port", str(free_port())]
    async with (
        fake_scheduler() as (_, one),
        fake_scheduler() as (_, other),
        running(*told, "--scheduler", one) as leaver,
        running(*told, "--scheduler", other) as stayer,
    ):
        for router in (leaver, stayer):
            await _until_ready(str(router.ready["metrics"]).removesuffix("/metrics"))
        yield leaver, stayer


async def _until_ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http, asyncio.timeout(30):
        while (await http.get("/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_clients_that_keep_their_connections(routers: tuple[Process, Process]) -> None:
    leaver, _ = routers
    url = leaver.ready["address"]
    ended = asyncio.Event()

    async def ask(http: httpx.AsyncClient) -> None:
        response = await http.post(PATH, json=XYZ)
        assert response.status_code == 200, response.text

    async def ask_on(http: httpx.AsyncClient) -> None:
        while not ended.is_set():
            await ask(http)
            await asyncio.sleep(0.05)

    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
            for _ in range(16)
        ]
        await asyncio.gather(*map(ask, clients))
        its_own = psutil.Process(leaver.ready["pid"]).net_connections("tcp")
        assert any(connection.raddr for connection in its_own), "all are with the other one"
        asking = [asyncio.create_task(ask_on(http)) for http in clients]
        leaver.process.send_signal(signal.SIGTERM)
        assert await leaver.end() == 0
        ended.set()
        await asyncio.gather(*asking)
        await asyncio.gather(*map(ask, clients))


async def test_who_has_knocked_is_let_in(routers: tuple[Process, Process]) -> None:
    """It is told to end while connections wait for it to accept them."""
    leaver, _ = routers
    port = httpx.URL(leaver.ready["address"]).port
    process = psutil.Process(leaver.ready["pid"])
    process.suspend()
    knocking = [await asyncio.open_connection("127.0.0.1", port) for _ in range(32)]
    for _, writer in knocking:
        writer.write(ASK)
    leaver.process.send_signal(signal.SIGTERM)
    process.resume()
    async with asyncio.timeout(30):
        for reader, writer in knocking:
            assert (await reader.read(12)) == b"HTTP/1.1 200"
            writer.close()
    assert await leaver.end() == 0


async def test_who_has_only_knocked_is_answered_before_others_are_refused(router: Router) -> None:
    url = httpx.URL(router.address)
    with socket.create_connection((url.host, url.port), timeout=20) as knocking:
        knocking.sendall(ASK)
        router.leave()  # nobody has accepted it yet: nothing has been awaited
        await ending.see_off(router.backend, router.num_connections, 20.0, asyncio.Event())
        await ending.drain(router.backend, 20.0, asyncio.Event())
        assert knocking.recv(12) == b"HTTP/1.1 200"


async def test_who_is_only_being_let_in_is_somebody(
    start_router: StartRouter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And if nothing comes of it, nobody need know."""
    files = signed(tmp_path)
    async with start_router(tls=TlsFiles(files.cert, files.key)) as router:
        url = httpx.URL(router.address)
        with socket.create_connection((url.host, url.port)) as knocking:
            router.leave()
            assert router.num_connections() == 1
            knocking.sendall(ASK)  # which is no TLS
            await until(lambda: router.num_connections() == 0)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_every_answer_of_a_router_that_ends_ends_its_connection(
    router: Router,
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "connection" not in (await http.post(PATH, json=XYZ)).headers
    scheduler.hold_at = 1
    asking = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: router.backend.permits.num_taken == 1)
    draining = asyncio.create_task(ending.drain(router.backend, 20.0, asyncio.Event()))
    await until(lambda: router.backend.engine.draining)
    refused = await http.post(PATH, json=XYZ)
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert (await http.get("/health")).headers["connection"] == "close"

    def fail(_: Readiness) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Readiness, "why_not", fail)
    crashed = await http.get("/ready")
    assert (crashed.status_code, crashed.headers["connection"]) == (500, "close")
    scheduler.hold_at = None
    answered = await asking
    assert (answered.status_code, answered.headers["connection"]) == (200, "close")
    await draining
