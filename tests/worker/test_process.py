"""`python -m worker` as a whole: it serves a fake scheduler, and says clearly why it cannot."""

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from protos.quire.v1 import sampling_pb2, worker_pb2
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE
from tests.worker.fake_scheduler import PATIENCE_S, Attachment, FakeScheduler, fake_scheduler
from tests.worker.test_encoder import write_model as write_encoder
from worker import ledger
from worker.encoder_loader import OpenedEncoder
from worker.loader import OpenedModel
from worker.options import Options, StartError
from worker.parallel import Group
from worker.place import SOLE
from worker.start import start

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


@dataclass
class Worker:
    """A running worker process."""

    process: asyncio.subprocess.Process

    async def ready(self) -> dict[str, object]:
        """What its ready line says."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await self.process.stdout.readline()).decode()
        assert line.startswith("quire-ready ")
        ready: dict[str, object] = json.loads(line.removeprefix("quire-ready "))
        return ready

    async def end(self) -> tuple[int | None, str, str]:
        """Exit code, the rest of its output, and its log."""
        async with asyncio.timeout(PATIENCE_S):
            output, log = await self.process.communicate()
        return self.process.returncode, output.decode(), log.decode()


@asynccontextmanager
async def running_worker(*arguments: object, module: str = "worker") -> AsyncIterator[Worker]:
    metrics = () if "--metrics-port" in arguments else ("--metrics-port", 0)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, "--device", "cpu", "--threads", "1"),
        *(str(argument) for argument in (*metrics, *arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    async with fake_scheduler() as server:
        yield server


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
        assert hello.device == "cpu (1 threads)"
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


# --- what a restart cannot cure ------------------------------------------------------------------


async def only_error(*arguments: object) -> str:
    """The one `error:` line of a worker that must exit with code 2."""
    async with running_worker(*arguments) as worker:
        code, output, log = await worker.end()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert (code, output, len(errors)) == (2, "", 1), log
    assert "Traceback" not in log
    return errors[0]


async def test_a_missing_directory(tmp_path: Path) -> None:
    missing = tmp_path / "nothing-here"
    assert await only_error("--model", missing) == f"error: model {missing}: no such directory"


async def test_not_enough_memory_for_one_sequence(tiny_directory: Path) -> None:
    assert await only_error("--model", tiny_directory, "--kv-cache-memory", "20KiB") == (
        "error: one sequence of max_model_len 96 needs 56.00 KiB of KV memory; "
        "--kv-cache-memory gives 20.00 KiB, enough for --max-model-len 16"
    )


def options(model: Path, kv_cache_memory: int | None = None) -> Options:
    """As they are without any flag."""
    return Options(
        model=model,
        scheduler="unix:/nowhere",
        served_model_name="tiny",
        max_model_len=None,
        block_size=16,
        num_blocks=None,
        kv_cache_memory=kv_cache_memory,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        dtype="auto",
        load_format="auto",
        enforce_eager=False,
        device="cpu",
        gpu_memory_utilization=0.9,
        num_threads=1,
        replica_id=None,
        metrics_host="127.0.0.1",
        metrics_port=0,
    )


def test_no_weight_is_read_when_one_sequence_cannot_fit(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenedModel, "load", lambda opened: pytest.fail("weights were read"))
    with pytest.raises(StartError, match=r"gives 20\.00 KiB"):
        start(options(tiny_directory, 20 << 10), torch.device("cpu"), Group(SOLE))


def test_no_weight_is_read_when_they_cannot_fit(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenedModel, "load", lambda opened: pytest.fail("weights were read"))
    monkeypatch.setattr(ledger, "free_bytes", lambda device: 100 << 10)
    with pytest.raises(StartError, match=r"^the weights need .* 100\.00 KiB of memory are free"):
        start(options(tiny_directory), torch.device("cpu"), Group(SOLE))


def test_no_weight_of_an_encoder_is_read_when_they_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenedEncoder, "load", lambda opened: pytest.fail("weights were read"))
    monkeypatch.setattr(ledger, "free_bytes", lambda device: 10 << 10)
    with pytest.raises(StartError, match=r"^the weights need .* 10\.00 KiB of memory are free"):
        start(options(write_encoder(tmp_path)), torch.device("cpu"), Group(SOLE))


def test_a_device_that_is_full_is_one_line(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(opened: OpenedModel) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the docs")

    monkeypatch.setattr(OpenedModel, "load", load)
    with pytest.raises(StartError, match=r"do not fit: CUDA out of memory.* 2 GiB\.$"):
        start(options(tiny_directory), torch.device("cpu"), Group(SOLE))


async def test_a_size_that_is_none(tiny_directory: Path) -> None:
    assert await only_error("--model", tiny_directory, "--kv-cache-memory", "lots") == (
        "error: --kv-cache-memory is 'lots'; it must be a size like 2GiB or 512MiB"
    )


async def test_a_metrics_port_in_use(tiny_directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = await only_error("--model", tiny_directory, "--metrics-port", port)
    assert found == f"error: cannot serve metrics on 127.0.0.1:{port}: Address already in use"


async def test_a_refused_hello(tiny_directory: Path, scheduler: FakeScheduler) -> None:
    scheduler.refusal = "this cell serves another model"
    found = await only_error("--model", tiny_directory, "--scheduler", scheduler.address)
    assert found.endswith("refused this worker: this cell serves another model")
