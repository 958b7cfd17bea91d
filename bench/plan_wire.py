"""What the plan stream costs: bytes per plan, encoding, decoding, and the real round trip.

A real `python -m scheduler` serves; this process is its only worker and its only router, both over
real gRPC streams. The worker answers at once and never has more than one answer outstanding, so
the time from writing a result to reading the plan that it caused is one round trip: the result's
decoding, `apply`, the router's frame, `schedule`, the plan's encoding and the network both ways.

    python -m bench.plan_wire --sequences 256 --steps 1000 --save bench/results/plan_wire.json
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
import uvloop

from bench.modelled_worker import VOCABULARY, ModelledSampling, ModelledWorker, StepCost
from bench.recording import Target, report
from protos.quire.v1 import sampling_pb2, scheduler_pb2, worker_pb2
from scheduler.core.decisions import Admission, Plan
from scheduler.core.events import Capacity, StepResult
from scheduler.wire import frames, workers

_BLOCK_SIZE = 16
_WARM_UP_STEPS = 100
_MOST_WARM_UP_STEPS = 4000
_ENDLESS = ModelledSampling(1 << 30)
_SAMPLING = sampling_pb2.SamplingParams(top_p=1.0, repetition_penalty=1.0)


class Rank:
    """The worker's end of the plan stream, over a modelled executor."""

    def __init__(self, channel: grpc.aio.Channel, capacity: Capacity) -> None:
        self._call: Any = channel.stream_stream("/quire.v1.WorkerService/Attach")()
        self._capacity = capacity
        self._worker = ModelledWorker(capacity, StepCost(0.0, 0.0, 0.0))
        self._waiting: deque[worker_pb2.BatchPlan] = deque()
        self.num_decoding = 0
        self.newest = b""

    async def attach(self) -> None:
        """Says hello and is welcomed."""
        capacity = self._capacity
        hello = worker_pb2.Hello(
            protocol_version=1,
            worker_id="bench",
            replica_id="bench",
            world_size=1,
            model=worker_pb2.ModelCard(
                name="modelled", max_model_len=capacity.max_model_len, vocab_size=VOCABULARY
            ),
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_num_seqs=capacity.max_num_seqs,
            max_num_batched_tokens=capacity.max_num_batched_tokens,
        )
        await self._call.write(worker_pb2.AttachRequest(hello=hello).SerializeToString())
        await self._call.read()

    async def receive(self) -> None:
        """Takes one plan off the stream."""
        self.newest = await self._call.read()
        plan = worker_pb2.AttachResponse.FromString(self.newest).plan
        self._waiting.append(plan)

    async def answer(self) -> None:
        """Executes the oldest plan and writes its result."""
        message = self._waiting.popleft()
        plan = decode_plan(message)
        if plan.decode is not None:
            self.num_decoding = plan.decode.size
        result = self._worker.execute(plan)[0]
        await self._call.write(encode_result(result, message.epoch))


def decode_plan(message: worker_pb2.BatchPlan) -> Plan:
    """The columns of a plan, read where they lie."""

    def column(data: bytes) -> np.ndarray:
        return np.frombuffer(data, "<i4")

    return Plan(
        step_id=message.step_id,
        retire=column(message.retire_slot),
        admit=tuple(
            Admission(
                slot=entry.slot,
                generation=entry.generation,
                token_ids=column(entry.token_id),
                num_prompt_tokens=entry.num_prompt_tokens,
                max_total_tokens=entry.max_total_tokens,
                blocks=column(entry.block),
                num_computed=entry.num_computed,
                seed=entry.seed,
                sampling=_ENDLESS,
            )
            for entry in message.admit
        ),
        append_slot=column(message.append_slot),
        append_index=column(message.append_index),
        append_block=column(message.append_block),
        decode=column(message.decode_slot) if message.HasField("decode_slot") else None,
        chunk_slot=column(message.chunk_slot),
        chunk_start=column(message.chunk_start),
        chunk_length=column(message.chunk_length),
        num_tokens=0,
    )


def encode_result(result: StepResult, epoch: int) -> bytes:
    """As a worker writes it."""
    message = worker_pb2.StepResult(
        epoch=epoch,
        step_id=result.step_id,
        slot=result.slot.astype(np.int32).tobytes(),
        generation=result.generation.astype(np.int32).tobytes(),
        token_id=result.token_id.astype(np.int32).tobytes(),
        finish=result.finish.astype(np.uint8).tobytes(),
    )
    return worker_pb2.AttachRequest(result=message).SerializeToString()


async def submit_all(channel: grpc.aio.Channel, num_sequences: int, num_tokens: int) -> Any:
    """A router with this many endless requests; returns its stream."""
    call: Any = channel.stream_stream("/quire.v1.SchedulerService/Connect")()
    hello = scheduler_pb2.RouterHello(protocol_version=1, router_id="bench")
    await call.write(scheduler_pb2.ConnectRequest(hello=hello).SerializeToString())
    random = np.random.default_rng(7)
    for sequence_id in range(num_sequences):
        prompt = random.integers(0, VOCABULARY, 32 + sequence_id % _BLOCK_SIZE, np.int32)
        submit = scheduler_pb2.Submit(
            sequence_id=sequence_id,
            num_samples=1,
            token_id=prompt.tobytes(),
            num_prompt_tokens=prompt.size,
            max_tokens=num_tokens,
            sampling=_SAMPLING,
        )
        await call.write(scheduler_pb2.ConnectRequest(submit=submit).SerializeToString())
    return call


@contextlib.asynccontextmanager
async def a_scheduler(num_sequences: int) -> AsyncIterator[str]:
    """A scheduler process with room for that many sequences; gives its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler", "--listen", "127.0.0.1:0", "--metrics-port", "0"),
        *("--max-num-seqs", str(num_sequences), "--max-num-batched-tokens", "8192"),
        *("--drain-timeout", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    ready = (await process.stdout.readline()).decode().removeprefix("quire-ready ")
    try:
        yield json.loads(ready)["address"]
    finally:
        process.kill()
        await process.wait()


async def round_trips(num_sequences: int, num_steps: int) -> dict[str, float]:
    """Figures of one load: this many sequences, all decoding."""
    num_tokens = num_steps + _MOST_WARM_UP_STEPS
    blocks_each = (64 + num_tokens) // _BLOCK_SIZE + 1
    capacity = Capacity(num_sequences * blocks_each * 2, _BLOCK_SIZE, num_sequences, 8192, 1 << 20)
    async with a_scheduler(num_sequences) as address, grpc.aio.insecure_channel(address) as channel:
        rank = Rank(channel, capacity)
        await rank.attach()
        router = await submit_all(channel, num_sequences, num_tokens)
        reading = asyncio.create_task(_read_on(router))
        await rank.receive()
        while rank.num_decoding < num_sequences:
            await rank.answer()
            await rank.receive()
        for _ in range(_WARM_UP_STEPS):
            await rank.answer()
            await rank.receive()
        seconds, plans = [], []
        for _ in range(num_steps):
            started = time.perf_counter()
            await rank.answer()
            await rank.receive()
            seconds.append(time.perf_counter() - started)
            plans.append(rank.newest)
        reading.cancel()
    trip_us = np.array(seconds) * 1e6
    sizes = [len(plan) for plan in plans]
    return {
        "round trip p50 µs": float(np.percentile(trip_us, 50)),
        "round trip p99 µs": float(np.percentile(trip_us, 99)),
        "plan bytes, mean": float(np.mean(sizes)),
        "plan bytes, largest": float(np.max(sizes)),
        "plan bytes per sequence": float(np.mean(sizes)) / num_sequences,
        **codec_costs(plans, num_sequences),
    }


async def _read_on(call: Any) -> None:
    while await call.read():
        pass


def codec_costs(plans: list[bytes], num_sequences: int) -> dict[str, float]:
    """Microseconds per step to write and read a plan, a result and a frame: means."""

    def read_plan(data: bytes) -> Plan:
        return decode_plan(worker_pb2.AttachResponse.FromString(data).plan)

    decoded = [read_plan(data) for data in plans]
    columns = np.arange(num_sequences, dtype=np.int32)
    result = StepResult(1, columns, columns, columns, np.zeros(num_sequences, np.uint8))
    written = encode_result(result, 1)

    def read_result() -> object:
        message = workers.parse_attach(written).result
        return workers.decode_result(message, num_slots=num_sequences, vocab_size=VOCABULARY)

    return {
        "plan encode µs": _mean_us([partial(workers.encode_plan, plan, 1) for plan in decoded]),
        "plan decode µs": _mean_us([partial(read_plan, data) for data in plans]),
        "result encode µs": _mean_us([lambda: encode_result(result, 1)] * len(plans)),
        "result decode and check µs": _mean_us([read_result] * len(plans)),
        "frame encode µs": _mean_us(
            [lambda: frames.encode_frame(columns, columns, None, ())] * len(plans)
        ),
    }


def _mean_us(calls: list[Callable[[], object]]) -> float:
    started = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - started) / len(calls) * 1e6


def _title(count: int) -> str:
    return f"{count} sequences decoding"


def main(
    sequences: Annotated[list[int], typer.Option(help="Decoding at once; may be repeated.")] = [  # noqa: B006
        1,
        256,
        1024,
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 1000,
    save: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
) -> None:
    """Measures the plan stream of a real scheduler process."""
    figures = {_title(count): uvloop.run(round_trips(count, steps)) for count in sequences}
    targets = [
        Target(
            f"bytes per sequence at {count}", figures[_title(count)]["plan bytes per sequence"], 8.0
        )
        for count in sequences
        if count > 1
    ]
    report(figures, targets, save)


if __name__ == "__main__":
    typer.run(main)
