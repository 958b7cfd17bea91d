"""Strangers on the scheduler's port: nothing is theirs without the token, or the certificate."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import channels
from protos.channels import dial
from protos.trust import NO_TRUST, Trust
from scheduler.cell import Cell
from scheduler.core.config import CoreConfig
from scheduler.core.scheduler import Scheduler
from scheduler.service import GrpcServer
from tests.certificates import Signed, signed

ROOT = Path(__file__).parents[2]
OLD, NEW = "the-token-of-last-month", "the-token-of-this-month"
METHODS = (
    "/quire.v1.SchedulerService/Connect",
    "/quire.v1.SchedulerService/GetState",
    "/quire.v1.WorkerService/Attach",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/quire.v1.SchedulerService/NoSuchMethod",
)


@contextlib.asynccontextmanager
async def cell(trust: Trust, address: str = "localhost:0") -> AsyncIterator[str]:
    """A scheduler that listens there; yields the address with its port."""
    server = GrpcServer.of_cell(
        Cell(Scheduler(CoreConfig(hash_seed=b"test")), step_timeout_s=60), trust
    )
    bound = server.listen(address)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(0)


async def asked(address: str, trust: Trust, method: str = METHODS[1]) -> grpc.StatusCode:
    """How a call ends that says nothing."""
    async with dial(trust, address, ()) as channel:
        ask: Any = channel.unary_unary(method)
        call = ask(b"", metadata=trust.metadata, timeout=20)
        code: grpc.StatusCode = await call.code()
        return code


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("token", [None, "a-token-of-somebody-else", f"{NEW}x"])
async def test_without_the_token_no_method_answers(method: str, token: str | None) -> None:
    async with cell(Trust((NEW, OLD))) as address:
        stranger = Trust((token,)) if token else NO_TRUST
        assert await asked(address, stranger, method) is grpc.StatusCode.UNAUTHENTICATED


async def test_strangers_are_named_once_and_not_without_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cell(Trust((NEW,)), "[::]:0") as address:
        for _ in range(2):
            await asked(f"127.0.0.1:{address.rpartition(':')[2]}", Trust((OLD,)))
    of_one = "refused a call from 127.0.0.1: its cluster token is missing or wrong"
    assert [record.message for record in caplog.records] == [of_one]
    caplog.clear()
    monkeypatch.setattr(channels, "_MAX_NAMED", 0)
    async with cell(Trust((NEW,)), "localhost:0") as address:
        for _ in range(2):
            await asked(address, NO_TRUST)
    assert [record.message for record in caplog.records] == [
        "more than 0 addresses are refused; no more are named"
    ]


async def test_any_token_of_the_file_lets_in_so_that_it_can_be_changed() -> None:
    async with cell(Trust((NEW, OLD))) as address:
        for token in (OLD, NEW):
            assert await asked(address, Trust((token,))) is grpc.StatusCode.OK


async def test_probes_need_no_token() -> None:
    async with cell(Trust((NEW,))) as address, grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_certificates_of_one_authority_know_each_other(tmp_path: Path) -> None:
    ours, theirs = trust_of(signed(tmp_path / "ours")), trust_of(signed(tmp_path / "theirs"))
    async with cell(ours) as address:
        assert await asked(address, ours) is grpc.StatusCode.OK
        for stranger in (theirs, NO_TRUST):
            assert await asked(address, stranger) is grpc.StatusCode.UNAVAILABLE
    async with cell(theirs) as address:  # the scheduler must be known, too
        assert await asked(address, ours) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_does_not_stand_for_a_token(tmp_path: Path) -> None:
    held = trust_of(signed(tmp_path)).certificates
    async with cell(Trust((NEW,), held)) as address:
        assert await asked(address, Trust((), held)) is grpc.StatusCode.UNAUTHENTICATED
        assert await asked(address, Trust((NEW,), held)) is grpc.StatusCode.OK


async def test_a_unix_socket_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.sock"
    async with cell(trust_of(signed(tmp_path)), f"unix:{path}") as address:
        assert path.stat().st_mode & 0o777 == 0o600
        assert await asked(address, NO_TRUST) is grpc.StatusCode.OK


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_a_scheduler_for_other_machines_does_not_start_without_either(listen: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "scheduler", "--listen", listen, "--metrics-port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "QUIRE_CLUSTER_TOKEN"},
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: --listen is {listen}, which other machines can reach;")
    assert ended.stderr.count("\n") == 1


async def test_a_state_is_told_to_who_has_the_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{NEW}\n")
    async with cell(Trust((NEW,))) as address:
        given = ("--cluster-token-file", str(tokens))
        code, out, _ = await quire("state", "--address", address, "--json", *given)
        assert code == 0
        assert '"routers": 0' in out
        code, out, err = await quire("state", "--address", address)
        assert (code, out) == (1, "")
        assert "the cluster token is missing or wrong; start this process with" in err


async def quire(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire", *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def trust_of(files: Signed) -> Trust:
    return Trust.read(cert=files.cert, key=files.key, ca=files.ca, environment={})
