"""The served path against what bounds it and against what a user would try first.

One run, one machine, the same weights and threads:

- the share of a step in which the worker waited for a plan, at concurrency 1, 8 and 32;
- output tokens/s through router, scheduler and worker over the worker's bare loop, at 8;
- output tokens/s over transformers' `generate`: one request alone, and 32 of mixed length against
  static batching.

    python -m bench.served --threads 2
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families

from bench.mixed_requests import MixedRequest, mixed_requests, uniform_requests
from bench.recording import Target, report
from quire import SamplingParams
from quire.background import BackgroundStack
from quire.client import InferenceClient
from quire.models import ResolvedModel, resolve
from quire.options import StackOptions


class Mixed(TypedDict):
    """Arguments of `mixed_requests`."""

    count: int
    input_len: tuple[int, int]
    output_len: tuple[int, int]


MIXED: Mixed = {"count": 32, "input_len": (16, 512), "output_len": (16, 256)}


_COUNTERS = (
    "quire:worker_wait_seconds_sum",
    "quire:step_seconds_sum",
    "quire:step_seconds_count",
)


@dataclass(frozen=True, slots=True)
class Served:
    """One load through the whole stack."""

    output_tokens_per_s: float
    wait_share: float
    """Of the time of its steps, the worker waited so much for plans."""
    step_ms: float


class StackUnderTest:
    """A stack on unix sockets, a client of it, and its counters."""

    def __init__(self, model: ResolvedModel, threads: int) -> None:
        options = StackOptions(threads=threads, max_model_len=2048)
        self._background = BackgroundStack(model, options)
        [scheduler] = [m for m in self._background.stack.members if m.spec.role == "scheduler"]
        (ready,) = scheduler.ready
        self._metrics_url = str(ready.metrics)

    def close(self) -> None:
        """Ends its processes."""
        self._background.close()

    def measure(self, requests: list[MixedRequest], concurrency: int) -> Served:
        """Sends all requests, so many at once, and reads the counters before and after."""
        before = self._counters()
        started = time.perf_counter()
        self._background.run(self._send(requests, concurrency))
        duration_s = time.perf_counter() - started
        after = self._counters()
        waited, stepped, steps = (after[name] - before[name] for name in _COUNTERS)
        tokens = sum(request.output_len for request in requests)
        return Served(tokens / duration_s, waited / stepped, 1e3 * stepped / steps)

    async def _send(self, requests: list[MixedRequest], concurrency: int) -> None:
        gate = asyncio.Semaphore(concurrency)
        client = InferenceClient(self._background.stack.grpc)

        async def one(request: MixedRequest) -> None:
            params = SamplingParams(temperature=0, max_tokens=request.output_len, ignore_eos=True)
            async with gate:
                answer = await client.complete(request.token_ids, params)
            assert len(answer.outputs[0].token_ids) == request.output_len

        try:
            await asyncio.gather(*(one(request) for request in requests))
        finally:
            await client.close()

    def _counters(self) -> dict[str, float]:
        text = httpx.get(self._metrics_url).text
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return {name: samples[name] for name in _COUNTERS}


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
    }
    at_1, at_8 = rate["256/128 at 1"], rate["256/128 at 8"]
    targets = [
        Target("largest share of a step waiting for a plan", max(wait.values()), 0.02),
        Target("served over bare loop at 8", at_8 / other["bare loop at 8"], 0.95, at_least=True),
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
