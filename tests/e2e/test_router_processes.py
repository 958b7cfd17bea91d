"""Two routers on one port: both serve, one that dies takes only its own connections along."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest

from quire import AsyncClient, SamplingParams
from tests.e2e.server import Server, serve

MODEL = "smollm2"
LONG = {"ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime_dir = tmp_path_factory.mktemp("run")
    with serve(MODEL, runtime_dir, "--max-model-len", "2048", "--router-processes", "2") as running:
        yield running


def routers(server: Server) -> dict[int, str]:
    """Where each answers alone, by process id."""
    rows = [row for row in server.rows() if row["role"] == "router"]
    assert [row["name"] for row in rows] == ["router-0", "router-1"]
    return {row["pid"]: str(row["metrics"]).removesuffix("/metrics") for row in rows}


def served(url: str) -> float:
    """Requests that a router has answered to their end."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = [line for line in lines if 'finished_reason="length"' in line]
    assert found
    return sum(float(line.rpartition(" ")[2]) for line in found)


def ports_connected_to(pid: int) -> set[int]:
    """Of those who are at the other end of a process's connections."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {connection.raddr.port for connection in connections if connection.raddr}


def test_new_connections_are_spread_over_both(server: Server) -> None:
    before = {url: served(url) for url in routers(server).values()}
    body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 1, "ignore_eos": True}
    for _ in range(40):  # a connection each: all on one side has a chance of 2 to the minus 39
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200
    shares = [served(url) - number for url, number in before.items()]
    assert sum(shares) == 40
    assert all(shares)


async def test_grpc_connections_are_spread_too(server: Server) -> None:
    before = {url: served(url) for url in routers(server).values()}
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    for _ in range(40):
        async with AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
            await client.generate([1, 2, 3], params)
    shares = [served(url) - number for url, number in before.items()]
    assert sum(shares) == 40
    assert all(shares)


def test_whose_metrics_they_are_is_always_known(server: Server) -> None:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 404
    assert "several processes answer here" in answer.json()["error"]["message"]
    for url in routers(server).values():
        assert httpx.get(f"{url}/ready").status_code == 200


def test_the_ports_are_still_refused_to_others(server: Server) -> None:
    for flags in (
        ["--port", str(server.port), "--router-processes", "2"],
        ["--port", str(server.port)],
    ):
        command = [sys.executable, "-m", "quire", "serve", MODEL, *flags]
        done = subprocess.run(
            command, env=server.environment, check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert f"--port {server.port} on 127.0.0.1: Address already in use" in done.stderr
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", server.port))


@pytest.mark.chaos
async def test_a_killed_router_takes_only_its_own_clients_along(server: Server) -> None:
    killed = min(routers(server))
    worker = next(row["pid"] for row in server.rows() if row["role"] == "worker")
    streams = await asyncio.gather(*(Stream.begin(server, 200) for _ in range(10)))
    os.kill(worker, signal.SIGSTOP)  # or a stream could be at its end before its router is
    try:
        its_ports = ports_connected_to(killed)
        os.kill(killed, signal.SIGKILL)
    finally:
        os.kill(worker, signal.SIGCONT)
    its_streams = [stream for stream in streams if stream.local_port in its_ports]
    others = [stream for stream in streams if stream.local_port not in its_ports]
    assert others, "all on one side: a chance of 1 in 1024"
    assert await asyncio.gather(*(stream.rest() for stream in others)) == [True] * len(others)
    assert not any(await asyncio.gather(*(stream.rest() for stream in its_streams)))
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for _ in range(8):
            await client.completions.create(model=MODEL, prompt="x", max_tokens=1)
    await _until_both_are_ready(server)
    assert killed not in routers(server)


@pytest.mark.chaos
async def test_a_router_that_is_told_to_end_finishes_what_it_has(server: Server) -> None:
    await _until_both_are_ready(server)
    streams = [await Stream.begin(server) for _ in range(8)]
    os.kill(min(routers(server)), signal.SIGTERM)
    # Who comes now is answered by the other one, as soon as the first no longer listens.
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for _ in range(8):
            await client.completions.create(model=MODEL, prompt="x", max_tokens=1)
    assert await asyncio.gather(*(stream.rest() for stream in streams)) == [True] * 8
    await _until_both_are_ready(server)


@pytest.mark.chaos
async def test_clients_that_keep_their_connections_see_no_router_end(server: Server) -> None:
    """Each asks on and on, mostly where it asked before, while one router after the other goes."""
    await _until_both_are_ready(server)
    are_over = asyncio.Event()
    url = f"{server.url}/v1"

    async def ask_on() -> int:
        num_answers = 0
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            while not are_over.is_set():
                await client.completions.create(model=MODEL, prompt="x", max_tokens=2)
                num_answers += 1
        return num_answers

    asking = [asyncio.create_task(ask_on()) for _ in range(8)]
    for pid in sorted(routers(server)):
        os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            while psutil.pid_exists(pid):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.1)
        await _until_both_are_ready(server)
    are_over.set()
    assert all(await asyncio.gather(*asking))


class Stream:
    """A completion on a connection of its own, begun."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.local_port = int(writer.get_extra_info("sockname")[1])

    @classmethod
    async def begin(cls, server: Server, max_tokens: int = 80) -> "Stream":
        """Returns with its first event."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = {"model": MODEL, "prompt": "Once", "max_tokens": max_tokens, "stream": True}
        content = json.dumps(body | LONG).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + content)
        stream = cls(reader, writer)
        while not (line := await reader.readline()).startswith(b"data: {"):
            assert line, "it never began"
        return stream

    async def rest(self) -> bool:
        """Whether it came to its proper end."""
        try:
            while line := await self._reader.readline():
                if line.startswith(b"data: [DONE]"):
                    return True
        except ConnectionError:
            return False
        finally:
            self._writer.close()
        return False


async def _until_both_are_ready(server: Server) -> None:
    async def ready() -> bool:
        urls = (await asyncio.to_thread(routers, server)).values()
        async with httpx.AsyncClient() as client:
            try:
                return all([(await client.get(f"{url}/ready")).status_code == 200 for url in urls])
            except httpx.HTTPError:
                return False

    async with asyncio.timeout(60):
        while not await ready():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.1)
