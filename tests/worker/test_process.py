"""`python -m worker` as a whole: it serves a fake scheduler, and says clearly why it cannot."""

import asyncio
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from protos.quire.v1 import sampling_pb2, worker_pb2
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE
from tests.worker.fake_scheduler import PATIENCE_S, Attachment, FakeScheduler
from tests.worker.processes import running_worker

PROMPT = list(range(40, 60))
NUM_TOKENS = 10


def packed(values: Sequence[int]) -> bytes:
    return np.array(values, "<i4").tobytes()


def first_plan(epoch: int, num_steps: int = NUM_TOKENS) -> worker_pb2.BatchPlan:
    tenant = worker_pb2.Admission(
        slot=0,
        generation=epoch,
        token_id=packed(PROMPT),
        num_prompt_tokens=len(PROMPT),
        max_total_tokens=len(PROMPT) + num_steps,
        block=packed([3, 1, 2, 9]),
        seed=5,
        sampling=sampling_pb2.SamplingParams(temperature=1.0, top_p=1.0, repetition_penalty=1.0),
    )
    return worker_pb2.BatchPlan(
        epoch=epoch,
        step_id=1,
        admit=[tenant],
        chunk_slot=packed([0]),
        chunk_start=packed([0]),
        chunk_length=packed([len(PROMPT)]),
    )


def decode_plan(epoch: int, step_id: int) -> worker_pb2.BatchPlan:
    plan = worker_pb2.BatchPlan(epoch=epoch, step_id=step_id)
    if step_id == 2:
        plan.decode_slot = packed([0])
    return plan


async def generate(stream: Attachment, epoch: int) -> list[int]:
    """Runs the sequence to its end, one plan ahead of its results."""
    await stream.plan(first_plan(epoch))
    tokens, finish = [], 0
    for step in range(2, NUM_TOKENS + 2):
        if step <= NUM_TOKENS:
            await stream.plan(decode_plan(epoch, step))
        result = await stream.result()
        assert (result.epoch, result.step_id) == (epoch, step - 1)
        assert (result.slot, result.generation) == (packed([0]), packed([epoch]))
        tokens += np.frombuffer(result.token_id, "<i4").tolist()
        assert finish == 0
        finish = result.finish[0]
    assert finish == sampling_pb2.FINISH_REASON_LENGTH
    return tokens


def children_of(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_it_serves_and_serves_the_same_after_a_break(
    tiny_directory: Path, scheduler: FakeScheduler
) -> None:
    settings = ("--max-num-seqs", 4, "--num-blocks", 30, "--block-size", 8)
    async with running_worker(
        "--model", tiny_directory, "--scheduler", scheduler.address, *settings
    ) as worker:
        stream, hello = await scheduler.attached()
        assert hello.pid == worker.process.pid
        assert hello.model.name == tiny_directory.name
        assert (hello.model.max_model_len, hello.model.vocab_size) == (MAX_MODEL_LEN, VOCAB_SIZE)
        assert (hello.num_blocks, hello.block_size, hello.max_num_seqs) == (30, 8, 4)
        assert hello.max_num_batched_tokens == 256, "a CPU's steps are short"
        assert hello.device == "cpu (torch, 1 threads)"
        await stream.welcome(1)
        ready = await worker.ready()
        assert (ready["role"], ready["pid"]) == ("worker", worker.process.pid)
        assert ready["address"] == scheduler.address
        tokens = await generate(stream, 1)
        assert len(tokens) == NUM_TOKENS

        stream.closed.set()
        stream, again = await scheduler.attached()
        assert again == hello
        await stream.welcome(2)
        assert await generate(stream, 2) == tokens

        page = await asyncio.to_thread(lambda: urlopen(str(ready["metrics"])).read().decode())
        assert f'quire:executor_steps_total{{model_name="tiny-llama"}} {2 * NUM_TOKENS}.0' in page
        assert (
            f'quire:executor_sampled_tokens_total{{model_name="tiny-llama"}} {2 * NUM_TOKENS}.0'
            in page
        )
        assert "quire:executor_wait_seconds_total" in page
        assert "quire:executor_resident_bytes" in page

        await stream.drain()
        await stream.farewell()
        code, output, log = await worker.end()
        assert (code, output) == (0, "")
        assert "30 blocks of 8 tokens" in log


async def test_an_idle_worker_reports_its_life(
    tiny_directory: Path, scheduler: FakeScheduler
) -> None:
    async with running_worker("--model", tiny_directory, "--scheduler", scheduler.address):
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        telemetry = await stream.receive_telemetry()
        assert telemetry.num_steps == 0
        assert telemetry.rss_bytes > 10_000_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(
    tiny_directory: Path, scheduler: FakeScheduler, number: signal.Signals
) -> None:
    async with running_worker(
        "--model", tiny_directory, "--scheduler", scheduler.address
    ) as worker:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await worker.ready()
        await stream.plan(first_plan(1))
        await stream.result()
        worker.process.send_signal(number)
        await stream.farewell()
        assert await stream.receive() is None
        assert (await worker.end())[0] == 0


@pytest.mark.parametrize("contradicts", [False, True])
async def test_captured_steps_go_before_the_ranks_part(
    tiny_directory: Path, scheduler: FakeScheduler, contradicts: bool
) -> None:
    """They hold operations of the group that joins the ranks."""
    settings = ("--model", tiny_directory, "--scheduler", scheduler.address, "--num-blocks", 30)
    async with running_worker(*settings, module="tests.worker.noted_worker") as worker:
        stream, hello = await scheduler.attached()
        assert len(hello.graph_bucket) > 1
        await stream.welcome(1)
        assert worker.process.stdout is not None
        rehearsed = [(await worker.process.stdout.readline()).decode() for _ in range(2)]
        assert rehearsed == ["closed with graphs ()\n"] * 2
        await worker.ready()
        if contradicts:
            await stream.plan(worker_pb2.BatchPlan(epoch=1, step_id=1, retire_slot=packed([3])))
        else:
            await stream.drain()
        code, output, _ = await worker.end()
        assert (code, output) == (int(contradicts), "closed with graphs ()\nleft \n")


@pytest.mark.chaos
async def test_killing_the_executor_breaks_the_stream_at_once(
    tiny_directory: Path, scheduler: FakeScheduler
) -> None:
    async with running_worker(
        "--model", tiny_directory, "--scheduler", scheduler.address
    ) as worker:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await worker.ready()
        (link,) = children_of(worker.process.pid)
        link_handle = os.pidfd_open(link)
        worker.process.kill()
        assert await stream.receive() is None
        # The handle is readable once the process has ended.
        ended, _, _ = await asyncio.to_thread(select.select, [link_handle], [], [], PATIENCE_S)
        os.close(link_handle)
        assert ended


@pytest.mark.chaos
async def test_the_executor_does_not_outlive_its_link(
    tiny_directory: Path, scheduler: FakeScheduler
) -> None:
    async with running_worker(
        "--model", tiny_directory, "--scheduler", scheduler.address
    ) as worker:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await worker.ready()
        (link,) = children_of(worker.process.pid)
        os.kill(link, signal.SIGKILL)
        code, _, log = await worker.end()
        assert code == 1
        assert "worker error the transport process ended with code -9" in log


@pytest.mark.chaos
async def test_an_executor_that_waits_for_its_device_for_ever_is_ended(
    tiny_directory: Path, scheduler: FakeScheduler
) -> None:
    """As the scheduler sees it: a step misses its deadline, and it ends the stream."""
    settings = ("--model", tiny_directory, "--scheduler", scheduler.address, "--num-blocks", 30)
    async with running_worker(*settings, module="tests.worker.stuck_worker") as worker:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await worker.ready()
        await stream.plan(first_plan(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await stream.result()
        assert worker.process.returncode is None, "it may still compute"
        stream.closed.set()
        code, _, log = await worker.end()
        assert code == -signal.SIGKILL
        assert "has not come out of a step 0.5 s after its stream ended; ending it" in log


@pytest.mark.chaos
@pytest.mark.parametrize("is_stuck", [False, True])
async def test_a_link_that_hangs_is_ended_and_the_executor_with_it(
    tiny_directory: Path, scheduler: FakeScheduler, is_stuck: bool
) -> None:
    """Stopped is as good as wedged: its loop does not turn. Nobody else ends it here."""
    settings = ("--model", tiny_directory, "--scheduler", scheduler.address, "--num-blocks", 30)
    async with running_worker(*settings, module="tests.worker.stuck_worker") as worker:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await worker.ready()
        if is_stuck:
            await stream.plan(first_plan(1))
            await stream.plan(decode_plan(1, 2))
            await stream.drain()  # it waits for the results, which never come
            await asyncio.sleep(0.5)
        (link,) = children_of(worker.process.pid)
        os.kill(link, signal.SIGSTOP)
        code, _, log = await worker.end()
        assert "the transport process has not shown for 3 s that it lives; ending it" in log
        assert code == (-signal.SIGALRM if is_stuck else 1)
        assert ("the transport process ended with code -9" in log) != is_stuck


async def test_a_plan_that_contradicts_the_mirror_ends_it(
    tiny_directory: Path, scheduler: FakeScheduler
) -> None:
    async with running_worker(
        "--model", tiny_directory, "--scheduler", scheduler.address
    ) as worker:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await stream.plan(worker_pb2.BatchPlan(epoch=1, step_id=1, retire_slot=packed([3])))
        assert await stream.receive() is None
        code, _, log = await worker.end()
        assert code == 1
        assert "retire_slot names a slot that holds no sequence" in log
