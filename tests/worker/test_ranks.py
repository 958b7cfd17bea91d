"""`python -m worker --tensor-parallel-size`: real ranks over gloo, under a fake scheduler."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from protos.quire.v1 import worker_pb2
from tests.worker.fake_scheduler import PATIENCE_S, Attachment, FakeScheduler
from tests.worker.test_process import NUM_TOKENS, decode_plan, first_plan

Rank = tuple[Attachment, worker_pb2.Hello]


@asynccontextmanager
async def running_ranks(
    num_ranks: int, *arguments: object
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "--tensor-parallel-size", str(num_ranks)),
        *("--metrics-port", "0", "--device", "cpu", "--threads", "1"),
        *(str(argument) for argument in arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Exit code and log."""
    async with asyncio.timeout(PATIENCE_S):
        _, log = await process.communicate()
    return process.returncode, log.decode()


async def attached(scheduler: FakeScheduler) -> list[Rank]:
    """Both ranks, in order."""
    ranks = [await scheduler.attached() for _ in range(2)]
    return sorted(ranks, key=lambda rank: rank[1].rank)


async def generate(streams: list[Attachment], epoch: int) -> list[bytes]:
    """Writes each plan to every rank; what rank 0 answers."""
    tokens = []
    for step in range(1, NUM_TOKENS + 1):
        for stream in streams:
            await stream.plan(first_plan(epoch) if step == 1 else decode_plan(epoch, step))
        result = await streams[0].result()
        assert (result.epoch, result.step_id) == (epoch, step)
        tokens.append(result.token_id)
    return tokens


async def test_ranks_attach_alike_and_rank_0_answers(
    tiny_directory: Path, scheduler: FakeScheduler
) -> None:
    flags = ("--model", tiny_directory, "--scheduler", scheduler.address, "--num-blocks", 30)
    async with running_ranks(2, *flags, "--block-size", 8, "--max-num-seqs", 4) as process:
        ranks = await attached(scheduler)
        hellos, streams = [hello for _, hello in ranks], [stream for stream, _ in ranks]
        assert [(hello.rank, hello.world_size) for hello in hellos] == [(0, 2), (1, 2)]
        assert len({hello.pid for hello in hellos} | {process.pid}) == 3
        for name in ("replica_id", "num_blocks", "block_size"):
            assert len({getattr(hello, name) for hello in hellos}) == 1, name
        assert hellos[0].model == hellos[1].model
        for stream in streams:
            await stream.welcome(1)
        tokens = await generate(streams, 1)

        # One rank's stream brings a plan that the other's does not: nobody runs it.
        await streams[0].plan(first_plan(1))
        for stream in streams:
            stream.closed.set()
        ranks = await attached(scheduler)
        streams = [stream for stream, _ in ranks]
        for stream in streams:
            await stream.welcome(2)
        assert await generate(streams, 2) == tokens

        os.kill(hellos[1].pid, signal.SIGTERM)  # whoever is told, all leave, in order
        for stream in streams:
            await stream.farewell()
        code, log = await end_of(process)
        assert code == 0, log
        assert "Traceback" not in log
        assert not re.search(r"torch(run|\.)", log), "what starts the ranks has nothing to say"


async def test_what_a_restart_cannot_cure_has_its_code_and_line(tiny_directory: Path) -> None:
    async with running_ranks(3, "--model", tiny_directory) as process:
        code, log = await end_of(process)
    errors = {line for line in log.splitlines() if line.startswith("error: ")}
    assert code == 2, log
    assert errors == {
        f"error: model {tiny_directory}: --tensor-parallel-size is 3; this model has 4 query heads "
        "and 2 key/value heads: it must be at most 2, or a multiple of that up to 4"
    }
    assert "Traceback" not in log
