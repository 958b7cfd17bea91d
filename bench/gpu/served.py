"""The whole of Quire on the device, against what a user would try first, on the same weights.

    python -m bench.gpu.served                       on the GPU
    python -m bench.gpu.served --device cpu --tiny   that it runs

Router, scheduler and worker run as `quire serve` runs them, with random weights; requests are token
ids over gRPC, all at once, and every answer runs to its full length. The peers then get the same
requests in this process: transformers' `generate`, its continuous batching, and vLLM where it is
installed.
"""

import asyncio
import math
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench.gpu import peers
from bench.gpu.device import Rates
from bench.gpu.floors import Floors
from bench.gpu.loop import BLOCK_SIZE, Loop, load_shape
from bench.gpu.scale import Load
from bench.gpu.shapes import write_model
from bench.gpu.sheet import Outcome, Sheet
from bench.gpu.suite import Suite, run_suite
from bench.mixed_requests import MixedRequest, uniform_requests
from bench.recording import Target
from quire import SamplingParams
from quire.background import BackgroundStack
from quire.client import AsyncClient
from quire.models import ResolvedModel
from quire.options import StackOptions

Peer = Callable[[Path, Suite], dict[Load, float]]
_WAIT = "quire:worker_wait_seconds_bucket"
_WARM_UP = Load(4, 16, 8)
_PATIENCE_S = 150.0
"""A stack that does not answer leaves time for the peers."""


class Quire:
    """A stack on unix sockets, and loads that it is given."""

    def __init__(self, directory: Path, suite: Suite) -> None:
        scale, is_gpu = suite.scale, suite.device.is_gpu
        longest = max(load.input_len + load.output_len for load in (scale.offline, *scale.peers))
        options = StackOptions(
            device="cuda" if is_gpu else "cpu",
            dtype=str(suite.device.dtype).removeprefix("torch."),
            load_format="dummy",
            max_model_len=longest,
            max_num_seqs=scale.many_rows,
            kv_cache_memory=None if is_gpu else "64MiB",
            threads=None if is_gpu else 1,
        )
        self._background = BackgroundStack(ResolvedModel(directory, "benchmark"), options)
        [scheduler] = [m for m in self._background.stack.members if m.spec.role == "scheduler"]
        (ready,) = scheduler.ready
        self._metrics_url = str(ready.metrics)

    def load_s(self, load: Load, seed: int) -> tuple[float, float]:
        """Seconds for the load, and the median µs that the device waited before a step of it."""
        requests = uniform_requests(
            load.count, input_len=load.input_len, output_len=load.output_len, seed=seed
        )
        before = self._waits()
        began = time.perf_counter()
        self._background.run(self._send(requests))
        took = time.perf_counter() - began
        after = self._waits()
        waits = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
        return took, 1e6 * _median(waits)

    def close(self) -> None:
        """Ends its processes."""
        self._background.close()

    async def _send(self, requests: list[MixedRequest]) -> None:
        client = AsyncClient(self._background.stack.grpc)

        async def one(request: MixedRequest) -> None:
            params = SamplingParams(temperature=0, max_tokens=request.output_len, ignore_eos=True)
            answer = await client.generate(request.token_ids, params)
            if len(answer.outputs[0].token_ids) != request.output_len:
                raise RuntimeError("an answer is too short")

        try:
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.gather(*(one(request) for request in requests))
        except TimeoutError:
            raise RuntimeError(f"not every answer came within {_PATIENCE_S:.0f} s") from None
        finally:
            await client.close()

    def _waits(self) -> dict[float, float]:
        """How many steps the device waited for no longer than each bound, in seconds."""
        with urllib.request.urlopen(self._metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == _WAIT
        }


def _median(cumulative: Mapping[float, float]) -> float:
    """Of a histogram: straight between the bounds of the bucket it falls into."""
    bounds = sorted(cumulative)
    half = cumulative[bounds[-1]] / 2
    for low, high in pairwise((0.0, *bounds)):
        below, within = cumulative.get(low, 0.0), cumulative[high]
        if within >= half > below:
            return (
                low if high == math.inf else low + (high - low) * (half - below) / (within - below)
            )
    return 0.0


class Comparison:
    """Quire's figures, which the peers' are compared with."""

    def __init__(self, suite: Suite, directory: Path, rates: Rates) -> None:
        self._suite, self._directory, self._rates = suite, directory, rates
        self._tokens_per_s: dict[Load, float] = {}

    def stack(self) -> Outcome:
        """Through the whole stack: the offline load, then those that peers get."""
        scale = self._suite.scale
        began = time.perf_counter()
        quire = Quire(self._directory, self._suite)
        figures: dict[str, Any] = {"started_s": time.perf_counter() - began}
        targets: list[Target] = []
        try:
            quire.load_s(_WARM_UP, seed=0)
            for seed, load in enumerate((scale.offline, *scale.peers), start=1):
                took, idle_us = quire.load_s(load, seed)
                self._tokens_per_s[load] = load.count * load.output_len / took
                figures[load.name] = self._reached(load, took) | {"device_idle_p50_us": idle_us}
                if load == scale.offline:
                    reached, name = self._tokens_per_s[load], self._name(load)
                    targets += [
                        Target(f"{name}: tokens/s", reached, 9000, at_least=True),
                        Target(f"{name}: device idle between steps, µs", idle_us, 50.0),
                    ]
        finally:
            quire.close()
        return figures, targets

    def loop(self) -> Outcome:
        """The worker's loop without anything around it, with the peers' loads."""
        scale, device = self._suite.scale, self._suite.device
        total = max(load.input_len + load.output_len for load in scale.peers)
        loaded = load_shape(self._directory, device, total)
        rows = max(load.count for load in scale.peers)
        loop = Loop(
            loaded,
            device,
            max_num_seqs=rows,
            max_num_batched_tokens=scale.chunk,
            num_blocks=rows * -(-total // BLOCK_SIZE),
        )
        loop.runner.capture([load.count for load in scale.peers])
        floors = Floors.of(loaded, self._rates)
        figures: dict[str, Any] = {}
        for load in scale.peers:
            loop.load_s(replace(load, output_len=min(4, load.output_len)), scale.chunk)
            took = loop.load_s(load, scale.chunk)
            reached = load.count * load.output_len / took
            self._tokens_per_s.setdefault(load, reached)
            figures[load.name] = {
                "tokens_per_s": reached,
                "of_floor": floors.load_s(load) / took,
            }
        offline = scale.offline
        floor = offline.count * offline.output_len / floors.load_s(offline)
        figures[offline.name] = {"floor_tokens_per_s": floor}
        if offline in self._tokens_per_s:
            figures[offline.name]["of_floor, whole stack"] = self._tokens_per_s[offline] / floor
        loop.close()
        device.let_go()
        return figures, []

    @property
    def peers(self) -> dict[str, Peer]:
        """By name; those that are installed."""
        found: dict[str, Peer] = {
            "transformers generate": peers.generate,
            "transformers continuous batching": peers.generate_batch,
        }
        return found | ({"vLLM": peers.vllm} if peers.has_vllm() else {})

    def compare(self, name: str, peer: Peer) -> Outcome:
        """A peer's figures, and Quire's over them."""
        figures: dict[str, Any] = {}
        targets = []
        for load, took in peer(self._directory, self._suite).items():
            figures[load.name] = self._reached(load, took)
            if load not in self._tokens_per_s:
                continue
            ratio = self._tokens_per_s[load] / figures[load.name]["tokens_per_s"]
            figures[load.name]["quire_over_it"] = ratio
            if load.count >= 32:
                promised = f"{self._name(load)}: over {name}"
                targets.append(Target(promised, ratio, 3.0, at_least=True))
        return figures, targets

    def _reached(self, load: Load, took: float) -> dict[str, float]:
        return {"took_s": took, "tokens_per_s": load.count * load.output_len / took}

    def _name(self, load: Load) -> str:
        return f"{self._suite.scale.large.name}, {load.name}"


def measure(sheet: Sheet, suite: Suite) -> None:
    """All parts; Quire first, and its processes are gone before a peer has the device."""
    rates = suite.device.rates(suite.scale)
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as directory:
        comparison = Comparison(
            suite, write_model(Path(directory) / "model", suite.scale.large), rates
        )
        sheet.part("Quire, the whole stack", comparison.stack)
        sheet.part("Quire, the worker's loop alone", comparison.loop)
        for name, peer in comparison.peers.items():
            sheet.part(name, partial(comparison.compare, name, peer))
            suite.device.let_go()


if __name__ == "__main__":
    run_suite(measure)
