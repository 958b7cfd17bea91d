"""What a worker shows to Prometheus, under `quire:executor_*`.

A step adds to plain numbers; they become metrics when somebody asks, on the HTTP server's thread.
"""

import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.plans import FinishReason, StepResult

_STATM = Path("/proc/self/statm")


@dataclass
class StepTotals:
    """Sums over the steps of this process; the thread that delivers results writes them."""

    num_steps: int = 0
    num_tokens: int = 0
    num_failed: int = 0
    num_live: int = 0
    wait_us: int = 0
    prepare_us: int = 0
    forward_us: int = 0
    sample_us: int = 0

    def add(self, result: StepResult, num_live: int) -> None:
        """Counts a step and what it left live."""
        timing = result.timing
        self.num_steps += 1
        self.num_tokens += len(result.token_id)
        if result.finish.any():
            self.num_failed += int((result.finish == FinishReason.ERROR).sum())
        self.num_live = num_live
        self.wait_us += timing.wait_us
        self.prepare_us += timing.prepare_us
        self.forward_us += timing.forward_us
        self.sample_us += timing.sample_us


class WorkerCollector(Collector):
    """Turns the totals into metrics at each scrape."""

    def __init__(self, totals: StepTotals, model_name: str) -> None:
        self._totals = totals
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        """The metrics, as they are now."""
        totals = self._totals
        yield self._counter("steps", "Plans executed.", totals.num_steps)
        yield self._counter("sampled_tokens", "Tokens sampled by live rows.", totals.num_tokens)
        yield self._counter("failed_rows", "Rows whose logits were not finite.", totals.num_failed)
        yield self._counter(
            "wait_seconds", "Time without a plan while sequences were live.", totals.wait_us / 1e6
        )
        yield self._counter(
            "prepare_seconds", "Time applying plans and building inputs.", totals.prepare_us / 1e6
        )
        yield self._counter("forward_seconds", "Time in forward passes.", totals.forward_us / 1e6)
        yield self._counter(
            "sample_seconds", "Time sampling and building results.", totals.sample_us / 1e6
        )
        yield self._gauge("live_sequences", "Sequences in the step state.", totals.num_live)
        yield self._gauge("resident_bytes", "Resident memory of the executor.", resident_bytes())

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"quire:executor_{name}", text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"quire:executor_{name}", text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family


def serve_metrics(totals: StepTotals, model_name: str, host: str, port: int) -> int:
    """Serves `/metrics` on a thread of its own; returns the port, which 0 leaves to the system.

    Raises `OSError` when the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(WorkerCollector(totals, model_name))
    server, _ = start_http_server(port, addr=host, registry=registry)
    return int(server.server_port)


def resident_bytes() -> int:
    """Resident memory of this process; where the system does not tell, its highest so far."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
