"""Clients that do not read: each costs the router a bounded amount of memory, and is ended.

A client that reads a byte a second is the same to it: nothing is ever free to be written.
"""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.router.conftest import until
from tests.router.fake_scheduler import FakeScheduler
from tests.router.test_process import running

PATIENCE_S = 300
NUM_CLIENTS = 64
MIB = 1 << 20
STORY = {"prompt": "xyz", "max_tokens": 1_000_000, "stream": True}
XYZ = {"prompt": "xyz", "max_tokens": 3}


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.parametrize(
    ("asked", "most_mib_each"), [({}, 1), ({"logprobs": 5}, 6)], ids=["plain", "logprobs"]
)
async def test_clients_that_do_not_read(
    model_dir: Path,
    served: tuple[FakeScheduler, str],
    asked: dict[str, Any],
    most_mib_each: float,
) -> None:
    scheduler, address = served
    scheduler.max_model_len = 10_000_000
    quiet = asyncio.subprocess.DEVNULL
    async with (
        running("--model", str(model_dir), "--scheduler", address, stderr=quiet) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=60) as http,
        contextlib.AsyncExitStack() as clients,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        assert (await http.post("/v1/completions", json=XYZ)).status_code == 200
        process = psutil.Process(router.ready["pid"])
        before = process.memory_info().rss
        body = json.dumps(STORY | asked).encode()
        url = httpx.URL(router.ready["address"])
        for _ in range(NUM_CLIENTS):
            clients.enter_context(await _ask(url, body))
        most = 0
        async with asyncio.timeout(PATIENCE_S):
            while len(scheduler.aborted) < NUM_CLIENTS:
                most = max(most, process.memory_info().rss - before)
                await asyncio.sleep(0.05)
        each = most / MIB / NUM_CLIENTS
        print(f"\n{NUM_CLIENTS} clients that do not read: {each:.2f} MiB each")
        assert each < most_mib_each
        assert (await http.post("/v1/completions", json=XYZ)).status_code == 200


async def _ask(url: httpx.URL, body: bytes) -> socket.socket:
    """With as little room for what is unread as the system allows."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setblocking(False)
    await loop.sock_connect(client, (url.host, url.port))
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    await loop.sock_sendall(client, head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    return client
