"""A client whose machine is gone says nothing: what it asked for ends all the same.

In a network namespace of its own whose link is taken down; skipped where there can be none.
"""

import asyncio
import sys
from pathlib import Path

import pytest

from router import http_protocol
from tests.chaos.namespaces import host
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

GONE_S = 2
CLIENT = """
import json, socket, sys, time
body = json.dumps({"prompt": "xyz", "max_tokens": 200, "stream": sys.argv[3] == "stream"}).encode()
client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
head = "POST /v1/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-type: application/json\\r\\n"
client.sendall(f"{head}content-length: {len(body)}\\r\\n\\r\\n".encode() + body)
while client.recv(65536):
    pass
"""


@pytest.mark.parametrize(("number", "answer"), [(0, "stream"), (1, "whole")])
async def test_a_machine_without_power(
    start_router: StartRouter,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    answer: str,
) -> None:
    """With a stream something is on its way to it, and with a whole answer nothing is."""
    monkeypatch.setattr(http_protocol, "GONE_S", GONE_S)
    scheduler.hold_at = 3
    program = tmp_path / "client.py"
    program.write_text(CLIENT)
    with host(number) as away:
        async with start_router(host="0.0.0.0") as router:
            port = router.address.rpartition(":")[2]
            client = await asyncio.create_subprocess_exec(
                *(*away.within, sys.executable, str(program), away.gateway, port, answer)
            )
            try:
                await until(lambda: bool(scheduler.submits))
                away.unplug()
                scheduler.hold_at = 6
                await until(lambda: bool(scheduler.aborted), timeout_s=10 * GONE_S)
                await until(lambda: router.backend.permits.num_taken == 0)
            finally:
                client.kill()
                await client.wait()
