"""The served path against what bounds it and against what a user would try first.

One run, one machine, the same weights and threads:

- the share of a step in which the worker waited for a plan, at concurrency 1, 8 and 32;
- processor time per step of every process, the load generator's (this one) among them;
- output tokens/s through router, scheduler and worker over the worker's bare loop, at 8;
- output tokens/s over transformers' `generate`: one request alone, and 32 of mixed length against
  static batching.

Answers are streamed over HTTP, as most clients ask for them; at 8, whole answers over gRPC, which
is how `quire.LLM` asks, are measured beside them.

    python -m bench.served --threads 2
"""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import httpx
import psutil
import typer
from prometheus_client.parser import text_string_to_metric_families

from bench.mixed_requests import MixedRequest, mixed_requests, uniform_requests
from bench.recording import Target, report
from quire import SamplingParams
from quire.background import BackgroundStack
from quire.client import AsyncClient
from quire.http import Endpoint
from quire.models import ResolvedModel, resolve
from quire.options import StackOptions


class Mixed(TypedDict):
    """Arguments of `mixed_requests`."""

    count: int
    input_len: tuple[int, int]
    output_len: tuple[int, int]


MIXED: Mixed = {"count": 32, "input_len": (16, 512), "output_len": (16, 256)}


WHOLE_AT_8 = "256/128 at 8, whole answers"

_COUNTERS = (
    "quire:worker_wait_seconds_sum",
    "quire:step_seconds_sum",
    "quire:step_seconds_count",
)

_PARTS = {
    "waits for a plan": "quire:executor_wait_seconds_total",
    "mirror": "quire:executor_prepare_seconds_total",
    "forward pass": "quire:executor_forward_seconds_total",
    "sampler": "quire:executor_sample_seconds_total",
}


@dataclass(frozen=True, slots=True)
class Served:
    """One load through the whole stack."""

    output_tokens_per_s: float
    wait_share: float
    """Of the time of its steps, the worker waited so much for plans."""
    step_ms: float
    cpu_ms: dict[str, float]
    """Processor time per step, user and system, of each process."""
    steps: float
    duration_s: float
    parts_s: dict[str, float]
    """Of the worker's time, by what it did."""


class StackUnderTest:
    """A stack on unix sockets, a client of it, and its counters."""

    def __init__(self, model: ResolvedModel, threads: int, **options: Any) -> None:
        """Starts it; more options of `StackOptions` may be given."""
        self._background = BackgroundStack(
            model, StackOptions(threads=threads, max_model_len=2048, **options)
        )
        processes = {each.role: each for each in self._background.stack.record().processes}
        self._metrics_urls = [str(processes[role].metrics) for role in ("scheduler", "worker")]
        self._pids = {role: each.pid for role, each in processes.items() if each.pid}
        [self._pids["link"]] = [
            child.pid
            for child in psutil.Process(self._pids["worker"]).children()
            if "worker.link" in child.cmdline()
        ]
        self._pids["load generator"] = os.getpid()

    def close(self) -> None:
        """Ends its processes."""
        self._background.close()

    def measure(
        self, requests: list[MixedRequest], concurrency: int, *, whole: bool = False
    ) -> Served:
        """Sends all requests, so many at once, and reads the counters before and after.

        Answers are streamed over HTTP, or come whole over gRPC.
        """
        send = self._send_for_whole if whole else self._send_for_streams
        before, cpu_before = self._counters(), self._cpu_s()
        started = time.perf_counter()
        self._background.run(send(requests, asyncio.Semaphore(concurrency)))
        duration_s = time.perf_counter() - started
        cpu_after, after = self._cpu_s(), self._counters()
        waited, stepped, steps = (after[name] - before[name] for name in _COUNTERS)
        tokens = sum(request.output_len for request in requests)
        return Served(
            output_tokens_per_s=tokens / duration_s,
            wait_share=waited / stepped,
            step_ms=1e3 * stepped / steps,
            cpu_ms={
                name: 1e3 * (cpu_after[name] - cpu_before[name]) / steps for name in self._pids
            },
            steps=steps,
            duration_s=duration_s,
            parts_s={part: after[name] - before[name] for part, name in _PARTS.items()},
        )

    async def _send_for_streams(
        self, requests: list[MixedRequest], gate: asyncio.Semaphore
    ) -> None:
        endpoint = Endpoint(self._background.stack.url)

        async def one(request: MixedRequest) -> None:
            payload = {
                "model": self._background.stack.name,
                "prompt": request.token_ids,
                "max_tokens": request.output_len,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            events = endpoint.events("/v1/completions", payload)
            async with gate, contextlib.aclosing(events):
                async for event in events:
                    last = event
            assert last["usage"]["completion_tokens"] == request.output_len

        await asyncio.gather(*(one(request) for request in requests))

    async def _send_for_whole(self, requests: list[MixedRequest], gate: asyncio.Semaphore) -> None:
        client = AsyncClient(self._background.stack.grpc)

        async def one(request: MixedRequest) -> None:
            params = SamplingParams(temperature=0, max_tokens=request.output_len, ignore_eos=True)
            async with gate:
                answer = await client.generate(request.token_ids, params)
            assert len(answer.outputs[0].token_ids) == request.output_len

        try:
            await asyncio.gather(*(one(request) for request in requests))
        finally:
            await client.close()

    def _cpu_s(self) -> dict[str, float]:
        return {name: _cpu_s(pid) for name, pid in self._pids.items()}

    def _counters(self) -> dict[str, float]:
        samples = {
            sample.name: sample.value
            for url in self._metrics_urls
            for family in text_string_to_metric_families(httpx.get(url).text)
            for sample in family.samples
        }
        return {name: samples[name] for name in (*_COUNTERS, *_PARTS.values())}


def _cpu_s(pid: int) -> float:
    """Processor time of a process with all its threads, to the nanosecond.

    The clock's number is what Linux's `clock_getcpuclockid` gives; /proc counts in 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _subprocess(module: str, *arguments: str) -> float:
    """Output tokens/s that a benchmark of its own process prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result["output_tokens_per_s"]


def run(threads: int, rounds: int) -> tuple[dict[str, Any], list[Target]]:
    """All figures; each is the median of `rounds`, the systems taking turns."""
    model = resolve("smollm2", lambda message: None)
    common = ("--model", str(model.path), "--threads", str(threads))
    served: dict[str, list[Served]] = {}
    others: dict[str, list[float]] = {}
    for seed in range(1, rounds + 1):
        others.setdefault("bare loop at 8", []).append(
            _subprocess("bench.bare_loop", *common, "--concurrency", "8")
        )
        stack = StackUnderTest(model, threads)
        try:
            stack.measure(uniform_requests(1, input_len=16, output_len=4, seed=0), 1)
            for concurrency, count in ((1, 2), (8, 8), (32, 32)):
                requests = uniform_requests(count, input_len=256, output_len=128, seed=seed)
                name = f"256/128 at {concurrency}"
                served.setdefault(name, []).append(stack.measure(requests, concurrency))
            requests = uniform_requests(8, input_len=256, output_len=128, seed=-seed)
            served.setdefault(WHOLE_AT_8, []).append(stack.measure(requests, 8, whole=True))
            mixed = mixed_requests(**MIXED, seed=seed)
            served.setdefault("mixed 32", []).append(stack.measure(mixed, len(mixed)))
        finally:
            stack.close()
        for mode in ("alone", "static"):
            others.setdefault(f"transformers {mode}", []).append(
                _subprocess(
                    "bench.transformers_baseline", *common, "--mode", mode, "--seed", str(seed)
                )
            )
    return _summary(served, others)


def _summary(
    served: dict[str, list[Served]], others: dict[str, list[float]]
) -> tuple[dict[str, Any], list[Target]]:
    def medians(what: Callable[[Served], float]) -> dict[str, float]:
        return {name: statistics.median(map(what, runs)) for name, runs in served.items()}

    rate = medians(lambda run: run.output_tokens_per_s)
    wait = medians(lambda run: run.wait_share)
    other = {name: statistics.median(runs) for name, runs in others.items()}
    figures = {
        "output_tokens_per_s": {f"quire {name}": value for name, value in rate.items()} | other,
        "step_ms": medians(lambda run: run.step_ms),
        "worker_wait_share": wait,
        "cpu_ms_per_step": {
            name: {
                process: statistics.median(run.cpu_ms[process] for run in runs)
                for process in runs[0].cpu_ms
            }
            for name, runs in served.items()
        },
    }
    at_1, at_8 = rate["256/128 at 1"], rate["256/128 at 8"]
    targets = [
        Target("largest share of a step waiting for a plan", max(wait.values()), 0.02),
        Target("served over bare loop at 8", at_8 / other["bare loop at 8"], 0.95, at_least=True),
        Target(
            "served over bare loop at 8, whole answers",
            rate[WHOLE_AT_8] / other["bare loop at 8"],
            0.95,
            at_least=True,
        ),
        Target("over transformers, alone", at_1 / other["transformers alone"], 1.5, at_least=True),
        Target(
            "over transformers, mixed lengths against static batches",
            rate["mixed 32"] / other["transformers static"],
            4.0,
            at_least=True,
        ),
    ]
    return figures, targets


def main(
    threads: Annotated[int, typer.Option(help="Compute threads of every system.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Write figures and machine as JSON.")] = None,
) -> None:
    """Measures and prints; about three minutes a round."""
    figures, targets = run(threads, rounds)
    report({"threads": threads, "rounds": rounds, **figures}, targets, save)


if __name__ == "__main__":
    typer.run(main)
