"""A client whose machine is gone says nothing: what it asked for ends all the same.

In a network namespace of its own whose link is taken down; skipped where there can be none.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from router import http_protocol
from tests.chaos.namespaces import host
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

ROOT = Path(__file__).parents[2]
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


CALLER = """
import sys
import grpc
from protos.quire.v1 import inference_pb2, inference_pb2_grpc
request = inference_pb2.GenerateRequest(text="xyz")
request.sampling.max_tokens = 200
with grpc.insecure_channel(sys.argv[1]) as channel:
    for _ in inference_pb2_grpc.InferenceServiceStub(channel).Generate(request):
        pass
"""


@pytest.mark.slow
async def test_a_caller_without_power(
    start_router: StartRouter, scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """Over gRPC, whose pings notice within ten seconds."""
    scheduler.hold_at = 3
    program = tmp_path / "caller.py"
    program.write_text(CALLER)
    with host(0) as away:
        async with start_router(grpc_listen="0.0.0.0:0") as router:
            port = router.grpc_address.rpartition(":")[2]
            client = await asyncio.create_subprocess_exec(
                *(*away.within, sys.executable, str(program), f"{away.gateway}:{port}"),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            try:
                await until(lambda: bool(scheduler.submits))
                away.unplug()
                await until(lambda: bool(scheduler.aborted))
                await until(lambda: router.backend.permits.num_taken == 0)
            finally:
                client.kill()
                await client.wait()
