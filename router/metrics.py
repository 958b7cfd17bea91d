"""What the router measures, under vLLM's names where vLLM has one.

Everything is observed on the event loop, up to once per token, so histograms here are two list
operations without a lock; they take the client library's form only when scraped.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.output import FinishReason
from router.permits import Permits
from router.response_store import ResponseStore

_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Histogram:
    """Counts observations in buckets; a value equal to a bound lies within it."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, model_name: str) -> HistogramMetricFamily:
        """As the client library exports it."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((str(bound) if bound != float("inf") else "+Inf", total))
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model_name"])
        family.add_metric([model_name], buckets, self._sum)
        return family


MAX_TENANTS = 100
"""Tenants that clients name, and that have rows of their own: who names more adds to one for all
others, which no client can name."""
OTHERS = "*"


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are counted together: clients make them up."""


@dataclass(slots=True)
class Totals:
    """What was asked for with one key, or on one tenant's behalf."""

    requests: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


class Metrics(Collector):
    """All of one router's metrics."""

    def __init__(
        self,
        model_name: str,
        permits: Permits,
        responses: ResponseStore,
        key_names: Iterable[str] = (),
    ) -> None:
        """`permits`: one is taken for each request in flight; `responses` are those kept;
        `key_names` are all that there are."""
        self._model_name = model_name
        self._permits = permits
        self._responses = responses
        self.time_to_first_token = Histogram(
            "vllm:time_to_first_token_seconds",
            "From a request's arrival to the first token of its first sample.",
            _FIRST_TOKEN_S,
        )
        self.inter_token_latency = Histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a sample.", _TOKEN_S
        )
        self.time_per_output_token = Histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time between two tokens of a finished sample.",
            _TOKEN_S,
        )
        self.e2e_request_latency = Histogram(
            "vllm:e2e_request_latency_seconds",
            "From a request's arrival to the end of its call's last sample.",
            _REQUEST_S,
        )
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(FinishReason, 0)
        """Requests: each prompt of a call, however many samples it has."""
        self.of_key: dict[str, Totals] = {}
        self.name_keys(key_names)
        self.of_tenant: dict[str, Totals] = {}
        """Of those that have no key."""
        self.resubmitted = 0
        self._answers: Counter[tuple[str, str, int]] = Counter()
        """HTTP answers by handler, method and status."""
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the client library."""
        yield self.time_to_first_token.family(self._model_name)
        yield self.inter_token_latency.family(self._model_name)
        yield self.time_per_output_token.family(self._model_name)
        yield self.e2e_request_latency.family(self._model_name)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens.", self.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Output tokens.", self.generation_tokens)
        finished = CounterMetricFamily(
            "vllm:request_success",
            "Requests that ended (each prompt of a call is one); the reason, among several "
            "samples, is the first of error, timeout, abort, length, stop that any has.",
            labels=["model_name", "finished_reason"],
        )
        for reason, count in self.finished.items():
            finished.add_metric([self._model_name, reason.value], count)
        yield finished
        yield from self._totals("key", "key_name", "by the name of their key", self.of_key)
        yield self._http_requests()
        says = f"by X-Tenant, where no key is asked for; after {MAX_TENANTS} the rest is {OTHERS}"
        yield from self._totals("tenant", "tenant", says, self.of_tenant)
        yield self._gauge(
            "quire:requests_in_flight", "Requests being answered.", self._permits.num_taken
        )
        yield self._gauge(
            "quire:stored_responses",
            "Answers of /v1/responses that are kept.",
            len(self._responses),
        )
        yield self._gauge(
            "quire:stored_response_bytes", "What they take up, as JSON.", self._responses.num_bytes
        )
        yield self._counter(
            "quire:resubmitted_requests",
            "Samples submitted anew after the scheduler was lost.",
            self.resubmitted,
        )

    def answered(self, handler: str | None, method: str, status: int) -> None:
        """An HTTP answer has begun; `handler` is the path as its endpoint has it, None: no
        endpoint's."""
        self._answers[handler or "none", method if method in _METHODS else "other", status] += 1

    def _http_requests(self) -> CounterMetricFamily:
        family = CounterMetricFamily(
            "http_requests",
            "HTTP answers, refusals among them, by path and status.",
            labels=["model_name", "handler", "method", "status"],
        )
        for (handler, method, status), count in self._answers.items():
            family.add_metric([self._model_name, handler, method, str(status)], count)
        return family

    def name_keys(self, names: Iterable[str]) -> None:
        """These keys have rows; those of keys that are gone stay."""
        for name in names:
            self.of_key.setdefault(name, Totals())

    def count_for(self, tenant: str, *, prompt_tokens: int, generation_tokens: int) -> None:
        """One request has ended, and what it cost, if it had a tenant."""
        if not tenant:
            return
        totals = self.of_key.get(tenant) or self.of_tenant.get(tenant)
        if totals is None:
            name = tenant if len(self.of_tenant) < MAX_TENANTS else OTHERS
            totals = self.of_tenant.setdefault(name, Totals())
        totals.requests += 1
        totals.prompt_tokens += prompt_tokens
        totals.generation_tokens += generation_tokens

    def _totals(
        self, kind: str, label: str, says: str, known: Mapping[str, Totals]
    ) -> Iterator[CounterMetricFamily]:
        for field, what in (
            ("requests", "Requests that ended"),
            ("prompt_tokens", "Prompt tokens"),
            ("generation_tokens", "Output tokens"),
        ):
            family = CounterMetricFamily(
                f"quire:{kind}_{field}", f"{what}, {says}.", labels=["model_name", label]
            )
            for name, totals in known.items():
                family.add_metric([self._model_name, name], getattr(totals, field))
            yield family

    def _gauge(self, name: str, documentation: str, value: int) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, documentation: str, value: int) -> CounterMetricFamily:
        family = CounterMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family
