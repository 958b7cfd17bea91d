"""A scheduler that is told to end and started again: its worker stays, with its weights."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from protos.quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from tests.ports import free_port
from tests.scheduler.peers import FakeRouter, Peer
from tests.worker.builders import write_tiny_llama

PATIENCE_S = 60
PROMPT = list(range(40, 60))


async def end_of(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await process.wait()


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours, from its ready line to its end."""
    command = (sys.executable, "-m", *arguments, "--metrics-port", "0")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert (await process.stdout.readline()).startswith(b"quire-ready ")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def tokens_of_one_request(address: str) -> list[int]:
    router = await FakeRouter.connected(address)
    await router.submit(1, PROMPT, max_tokens=12)
    await router.until_finished(1)
    await Peer.hang_up_all()
    return router.tokens[1]


async def only_replica(address: str) -> scheduler_pb2.ReplicaStatus:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        state: scheduler_pb2.GetStateResponse = await stub.GetState(scheduler_pb2.GetStateRequest())
    (replica,) = state.status.replicas
    return replica


async def drain(admin: str) -> None:
    """As an operator does."""
    command = (sys.executable, "-m", "quire", "drain", "--address", admin)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"drained\n")


async def test_a_worker_outlives_its_scheduler_and_leaves_when_the_cell_is_given_up(
    tmp_path: Path,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    model = str(write_tiny_llama(tmp_path / "tiny-llama"))
    flags = ("--model", model, "--device", "cpu", "--threads", "1", "--scheduler", address)
    async with (
        running("scheduler", "--listen", address) as first,
        running("worker", *flags) as worker,
    ):
        tokens = await tokens_of_one_request(address)
        before = await only_replica(address)
        first.send_signal(signal.SIGTERM)
        assert await end_of(first) == 0

        admin = f"unix:{tmp_path}/admin.sock"
        async with running("scheduler", "--listen", address, "--admin-listen", admin):
            assert await tokens_of_one_request(address) == tokens
            after = await only_replica(address)
            assert list(after.pids) == list(before.pids) == [worker.pid]
            assert after.epoch > before.epoch

            await drain(admin)
            assert await end_of(worker) == 0
