"""`python -m scheduler` as a process: how it says that it serves, and how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.trust import NO_TRUST
from quire.client.admin import drain
from quire.errors import RequestFailed
from tests.scheduler.peers import FakeRank, FakeRouter, Peer, token_at, within_time

ROOT = Path(__file__).parents[2]
FREE = ("--listen", "127.0.0.1:0", "--metrics-port", "0")


class Process:
    """A scheduler that has said that it serves."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.address: str = ready["address"]

    @classmethod
    async def started(cls, *arguments: str) -> "Process":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scheduler", *arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        line = await within_time(process.stdout.readline())
        word, _, rest = line.decode().partition(" ")
        assert word == "quire-ready", (line, await process.communicate())
        return cls(process, json.loads(rest))

    async def ended(self) -> tuple[int, str, str]:
        out, err = await within_time(self.process.communicate())
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
async def processes() -> AsyncIterator[list[Process]]:
    started: list[Process] = []
    yield started
    await Peer.hang_up_all()
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.communicate()


async def test_it_says_where_it_serves_and_sigterm_ends_it(processes: list[Process]) -> None:
    scheduler = await Process.started(*FREE)
    processes.append(scheduler)
    assert scheduler.ready.keys() == {"role", "pid", "address", "admin", "metrics"}
    assert scheduler.ready["role"] == "scheduler"
    assert scheduler.ready["pid"] == scheduler.process.pid

    def read() -> str:
        with urllib.request.urlopen(scheduler.ready["metrics"], timeout=20) as answer:
            return str(answer.read().decode())

    assert "vllm:num_requests_running" in await asyncio.to_thread(read)
    await FakeRouter.connected(scheduler.address)

    scheduler.process.send_signal(signal.SIGTERM)
    code, out, err = await scheduler.ended()
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert all(line[8:20] == " scheduler " + line[19] for line in err.splitlines()), err


async def test_it_has_no_port_for_operators_unless_told(processes: list[Process]) -> None:
    """On a port without a token any user of the machine could end the cell."""
    scheduler = await Process.started(*FREE)
    told = await Process.started(*FREE, "--admin-listen", "127.0.0.1:0")
    processes += [scheduler, told]
    assert scheduler.ready["admin"] is None
    for one, more in ((scheduler, set()), (told, {told.ready["admin"]})):
        url: str = one.ready["metrics"]
        known = {one.address, url.removeprefix("http://").partition("/")[0], *more}
        assert listens(one.process.pid) == {int(address.rpartition(":")[2]) for address in known}


def listens(pid: int) -> set[int]:
    """The ports."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}


async def test_told_to_end_it_hands_over_at_once(processes: list[Process]) -> None:
    """What is in flight is submitted to the next scheduler: nobody is refused, and none waits."""
    scheduler = await Process.started(*FREE, "--drain-timeout", "600")
    processes.append(scheduler)
    rank = await FakeRank.attached(scheduler.address)
    router = await FakeRouter.connected(scheduler.address)
    await router.submit(1, [1, 2, 3])
    await rank.answer(await rank.plan())
    scheduler.process.send_signal(signal.SIGTERM)
    await router.submit(2, [1, 2, 3])  # as good as in flight
    with pytest.raises(grpc.aio.AioRpcError, match="the scheduler is shutting down"):
        await router.until_finished(2)  # and no refusal
    assert router.tokens[1][0] == token_at(3)
    assert (await rank.end())[0] is grpc.StatusCode.UNAVAILABLE  # not told to leave
    assert (await scheduler.ended())[0] == 0


async def test_routers_that_leave_with_it_are_served_to_the_end(
    processes: list[Process], tmp_path: Path
) -> None:
    """And meanwhile so is everyone."""
    address = f"unix:{tmp_path}/scheduler.sock"
    scheduler = await Process.started("--listen", address, "--metrics-port", "0")
    processes.append(scheduler)
    rank = await FakeRank.attached(address)
    leaves = await FakeRouter.connected(address, "leaves")
    stays = await FakeRouter.connected(address, "stays")
    await leaves.submit(1, [1, 2, 3], max_tokens=5)
    plan = await rank.plan()
    scheduler.process.send_signal(signal.SIGTERM)
    await leaves.leave()
    await until_not_serving(address)
    await asyncio.sleep(1.0)  # longer than it waits for such words
    await rank.answer(plan)
    working = asyncio.create_task(rank.work())
    await stays.submit(1, [1, 2, 3], max_tokens=5)
    await stays.until_finished(1)
    await leaves.until_finished(1)
    assert leaves.tokens == stays.tokens == {1: [token_at(3 + n) for n in range(5)]}
    await leaves.hang_up()
    assert (await stays.end())[0] is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await within_time(working)  # it was not told to leave: it dials the next one
    assert (await scheduler.ended())[0] == 0


async def test_what_outlasts_the_drain_does_not_hold_it_up(processes: list[Process]) -> None:
    scheduler = await Process.started(*FREE, "--drain-timeout", "0.1")
    processes.append(scheduler)
    rank = await FakeRank.attached(scheduler.address)
    router = await FakeRouter.connected(scheduler.address)
    await router.submit(1, [1, 2, 3])
    await router.leave()
    await rank.plan()
    scheduler.process.send_signal(signal.SIGTERM)
    code, details = await router.end()
    assert (code.name, details) == ("UNAVAILABLE", "the scheduler is shutting down")
    assert (await scheduler.ended())[0] == 0


async def test_told_to_end_while_an_operator_drains_it_finishes_and_sends_the_workers_away(
    processes: list[Process],
) -> None:
    """There is no next scheduler for them to wait for."""
    scheduler = await Process.started(*FREE, "--admin-listen", "127.0.0.1:0")
    processes.append(scheduler)
    rank = await FakeRank.attached(scheduler.address)
    router = await FakeRouter.connected(scheduler.address)
    await router.submit(1, [1, 2, 3])
    plan = await rank.plan()
    with pytest.raises(RequestFailed, match="1 sequence left"):
        await drain(scheduler.ready["admin"], NO_TRUST, 0.001)
    scheduler.process.send_signal(signal.SIGTERM)
    await until_not_serving(scheduler.address)
    await rank.answer(plan)
    await within_time(rank.work())
    await router.until_finished(1)
    assert (await scheduler.ended())[0] == 0


async def test_a_second_signal_ends_it_at_once(processes: list[Process]) -> None:
    scheduler = await Process.started(*FREE, "--drain-timeout", "600")
    processes.append(scheduler)
    rank = await FakeRank.attached(scheduler.address)
    router = await FakeRouter.connected(scheduler.address)
    await router.leave()
    await router.submit(1, [1, 2, 3])
    await rank.plan()  # it is accepted: there is something to wait for
    scheduler.process.send_signal(signal.SIGINT)
    await until_not_serving(scheduler.address)
    scheduler.process.send_signal(signal.SIGINT)
    assert (await scheduler.ended())[0] == 1


async def until_not_serving(address: str) -> None:
    """It has heard that it is to end."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status = health_pb2.HealthCheckResponse.SERVING
        while status == health_pb2.HealthCheckResponse.SERVING:
            answer = await within_time(stub.Check(health_pb2.HealthCheckRequest()))
            status = answer.status


@pytest.mark.parametrize("kind", ["tcp", "unix", "metrics"])
def test_a_taken_address_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind(f"{tmp_path}/s" if kind == "unix" else ("127.0.0.1", 0))
        taken.listen()
        port = 0 if kind == "unix" else taken.getsockname()[1]
        arguments = {
            "tcp": ("--listen", f"127.0.0.1:{port}", "--metrics-port", "0"),
            "unix": ("--listen", f"unix:{tmp_path}/s", "--metrics-port", "0"),
            "metrics": ("--listen", "127.0.0.1:0", "--metrics-port", str(port)),
        }[kind]
        code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: cannot ")
    assert (f"{tmp_path}/s" if kind == "unix" else str(port)) in err
    assert err.count("\n") == 1
    assert ("; --metrics-port names another port (0: any free one)" in err) == (kind == "metrics")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-num-seqs", "0"), "max-num-seqs"),
        (("--watermark", "1.5"), "watermark"),
        (("--scheduling-policy", "random"), "scheduling-policy"),
        (("--priority-aging", "0"), "priority-aging"),
        (("--priority-aging", "inf"), "error: --priority-aging is 'inf'; it must be a number"),
        (("--max-losses", "-1"), "max-losses"),
        (("--speculative-ngram", "on"), "error: --speculative-ngram is 'on'; it must be auto, off"),
        (("--listen", "nowhere:at:all", "--metrics-port", "0"), "nowhere:at:all"),
    ],
)
def test_a_wrong_flag_is_named(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_the_scheduler_has_no_torch() -> None:
    probe = (
        "import sys, scheduler.__main__, scheduler.process;"
        "print([name for name in ('torch', 'transformers', 'numba') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def run(*arguments: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "scheduler", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr
