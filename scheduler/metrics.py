"""What the scheduler tells Prometheus.

Counts of the core are read at the moment of a scrape, so they cost the hot path nothing; what can
only be seen as it happens (durations, sizes) goes into `Histogram`, a bisection and two additions.
Everything is written and read on the event loop: the HTTP thread asks the loop for a snapshot.
"""

import asyncio
import concurrent.futures
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from scheduler.core.decisions import Finished
from scheduler.core.events import FinishReason
from scheduler.core.state import CoreState
from scheduler.messages import CellView

logger = logging.getLogger(__name__)

_SNAPSHOT_TIMEOUT_S = 5.0
_EACH_SAMPLE = "a request with n samples counts n times."
_LATENCY_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0),
)
_STEP_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_WAIT_S = (0.00001, 0.000025, 0.00005, *_STEP_S)
_TOKENS = tuple(float(2**power) for power in range(18))
_BYTES = tuple(float(4**power) for power in range(2, 13))


class Histogram:
    """Counts per bucket and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum", "name", "text")

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, model: str) -> HistogramMetricFamily:
        """As Prometheus wants it: cumulative."""
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        family = HistogramMetricFamily(self.name, self.text, labels=["model_name"])
        family.add_metric([model], buckets, self._sum)
        return family


class Metrics:
    """What happens in the cell, counted as it happens."""

    def __init__(self) -> None:
        self.queue_s = Histogram(
            "vllm:request_queue_time_seconds",
            f"From acceptance to first admission; {_EACH_SAMPLE}",
            _LATENCY_S,
        )
        self.prefill_s = Histogram(
            "vllm:request_prefill_time_seconds",
            f"From admission to first token; {_EACH_SAMPLE}",
            _LATENCY_S,
        )
        self.decode_s = Histogram(
            "vllm:request_decode_time_seconds",
            f"From first token to the end; {_EACH_SAMPLE}",
            _LATENCY_S,
        )
        self.inference_s = Histogram(
            "vllm:request_inference_time_seconds",
            f"From first admission to the end; {_EACH_SAMPLE}",
            _LATENCY_S,
        )
        self.prompt_tokens = Histogram(
            "vllm:request_prompt_tokens", f"Prompt tokens; {_EACH_SAMPLE}", _TOKENS
        )
        self.generation_tokens = Histogram(
            "vllm:request_generation_tokens", f"Output tokens; {_EACH_SAMPLE}", _TOKENS
        )
        self.iteration_tokens = Histogram(
            "vllm:iteration_tokens_total", "Tokens computed per step.", _TOKENS
        )
        self.worker_wait_s = Histogram(
            "quire:worker_wait_seconds", "Per step: the device idled for want of a plan.", _WAIT_S
        )
        self.step_s = Histogram(
            "quire:step_seconds", "Per step: from when it could start to its result.", _STEP_S
        )
        self.plan_bytes = Histogram("quire:plan_bytes", "Serialised size of a plan.", _BYTES)
        self.num_refused = dict.fromkeys(("invalid", "overloaded", "draining"), 0)
        """Clients' requests, by `Refused.reason`."""
        self.num_fenced_replicas = 0
        self.num_stale_results = 0
        self.num_integrity_failures = 0

    def finished(self, ends: Iterable[Finished]) -> None:
        """Sequences ended; only clients' that ran to their own end say something about speed."""
        for end in ends:
            if end.probe or end.reason not in (FinishReason.STOP, FinishReason.LENGTH):
                continue
            self.queue_s.observe(end.queue_s)
            self.prefill_s.observe(end.prefill_s)
            if end.vector_row is None:
                self.decode_s.observe(end.decode_s)
                self.generation_tokens.observe(end.num_output_tokens)
            self.inference_s.observe(end.prefill_s + end.decode_s)
            self.prompt_tokens.observe(end.num_prompt_tokens)

    def families(self, view: CellView, state: CoreState) -> Iterator[Metric]:
        """Everything, at this moment."""
        model = view.model.name if view.model is not None else ""
        yield from _gauges(model, view, state)
        yield from self._counters(model, state)
        for member in vars(self).values():
            if isinstance(member, Histogram):
                yield member.family(model)

    def _counters(self, model: str, state: CoreState) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:prefix_cache_queries", "Tokens looked up.", state.num_prefix_query_tokens),
            ("vllm:prefix_cache_hits", "Of those, found.", state.num_prefix_hit_tokens),
            ("vllm:num_preemptions", "Sequences that lost their blocks.", state.num_preemptions),
            ("quire:spec_decode_num_drafts", "Drafts verified.", state.num_drafts),
            ("quire:spec_decode_num_draft_tokens", "Tokens drafted.", state.num_draft_tokens),
            ("quire:spec_decode_num_accepted_tokens", "Accepted.", state.num_accepted_tokens),
            ("quire:overrun_tokens", "Tokens sampled after an end.", state.num_overrun_tokens),
            ("quire:vectors", "Vectors of prompts.", state.num_vectors),
            ("quire:replays", "Sequences computed again elsewhere.", state.num_replays),
            ("quire:distrusted", "Computed again, as not finite.", state.num_distrusted),
            ("quire:expired", "Sequences past their deadline.", state.num_expired),
            ("quire:convicted", "Sequences that crash a worker alone.", state.num_convicted),
            ("quire:fenced_replicas", "Step deadlines missed.", self.num_fenced_replicas),
            ("quire:stale_results", "Results ignored.", self.num_stale_results),
            ("quire:integrity_failures", "Checks that failed.", self.num_integrity_failures),
        ):
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([model], value)
            yield counter
        refused = CounterMetricFamily(
            "quire:refused_requests",
            "Requests of routers that were not accepted.",
            labels=["model_name", "reason"],
        )
        for reason, count in self.num_refused.items():
            refused.add_metric([model, reason], count)
        yield refused


def _gauges(model: str, view: CellView, state: CoreState) -> Iterator[Metric]:
    total = state.num_blocks_total
    for name, text, value in (
        ("vllm:num_requests_running", "Sequences holding a slot.", float(state.num_running)),
        ("vllm:num_requests_waiting", "Sequences queued.", float(state.num_waiting)),
        ("quire:suspects", "Sequences on trial, or about to be.", float(state.num_suspects)),
        (
            "vllm:kv_cache_usage_perc",
            "Share of blocks in use by sequences, 0 to 1.",
            state.num_blocks_used / total if total else 0.0,
        ),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["model_name"])
        gauge.add_metric([model], value)
        yield gauge
    blocks = GaugeMetricFamily(
        "quire:blocks", "KV blocks by state.", labels=["model_name", "replica", "state"]
    )
    for replica in state.replicas:
        for name, count in (
            ("free", replica.num_blocks_free),
            ("cached", replica.num_blocks_cached),
            ("used", replica.num_blocks_used - replica.num_blocks_limbo),
            ("limbo", replica.num_blocks_limbo),
        ):
            blocks.add_metric([model, replica.replica, name], count)
    yield blocks
    age = GaugeMetricFamily(
        "quire:step_age_seconds",
        "How long a step has been running.",
        labels=["model_name", "replica"],
    )
    for attached in view.replicas:
        age.add_metric([model, attached.replica_id], attached.step_age_s or 0.0)
    yield age


class _LoopCollector(Collector):
    """Runs `snapshot` on the event loop on behalf of the HTTP thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, snapshot: Callable[[], list[Metric]]
    ) -> None:
        self._loop = loop
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry that knows no names in advance does not ask for values in advance."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Called by the HTTP thread. A cell that cannot answer has nothing to tell."""
        answer: concurrent.futures.Future[list[Metric]] = concurrent.futures.Future()

        def ask() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self._snapshot())
                except Exception as error:
                    answer.set_exception(error)

        self._loop.call_soon_threadsafe(ask)
        return answer.result(_SNAPSHOT_TIMEOUT_S)


class MetricsServer:
    """Serves /metrics from a thread of its own. Raises OSError when the port is taken."""

    def __init__(self, host: str, port: int, snapshot: Callable[[], list[Metric]]) -> None:
        registry = CollectorRegistry()
        registry.register(_LoopCollector(asyncio.get_running_loop(), snapshot))
        self._server, self._thread = start_http_server(port, host, registry)
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stops serving; a scrape under way is cut off."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
