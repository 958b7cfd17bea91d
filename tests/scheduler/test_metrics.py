"""What /metrics says, read over HTTP as Prometheus reads it."""

import asyncio
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scheduler.metrics import Histogram, MetricsServer
from tests.scheduler.conftest import Served
from tests.scheduler.peers import FakeRank, FakeRouter, eventually


async def scrape(url: str) -> dict[tuple[str, ...], float]:
    def read() -> str:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return str(answer.read().decode())

    families = text_string_to_metric_families(await asyncio.to_thread(read))
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


async def test_metrics_tell_what_happened(served: Served) -> None:
    cell = served.cell
    server = MetricsServer(
        "127.0.0.1", 0, lambda: list(cell.metrics.families(cell.view(), cell.state()))
    )
    empty = await scrape(server.url)
    assert empty["vllm:num_requests_running", "model_name="] == 0
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    working = asyncio.create_task(rank.work())
    await router.submit(1, list(range(40)), max_tokens=8)
    await router.submit(2, list(range(40)), max_tokens=8)
    await router.submit(9, [5], max_tokens=1, probe=True)
    await router.until_finished(1, 2, 9)
    await router.submit(4, [1], priority=1)
    await router.refusal()
    rank.go.clear()
    await router.submit(3, [1, 2, 3])
    await eventually(lambda: cell.state().num_running == 1)
    cell.start_draining()
    for sequence_id, probe in ((5, False), (6, True)):
        await router.submit(sequence_id, [1], probe=probe)
        await router.refusal()

    seen = await scrape(server.url)
    await asyncio.to_thread(server.close)
    working.cancel()

    model = "model_name=tiny"
    assert seen["vllm:num_requests_running", model] == 1
    assert seen["vllm:num_requests_waiting", model] == 0
    assert seen["vllm:kv_cache_usage_perc", model] == pytest.approx(1 / 64)
    assert seen["vllm:prefix_cache_queries_total", model] >= 80
    assert seen["vllm:prefix_cache_hits_total", model] == cell.state().num_prefix_hit_tokens
    assert seen["vllm:num_preemptions_total", model] == 0
    for name, total in (
        ("vllm:request_prompt_tokens", 80),
        ("vllm:request_generation_tokens", 16),
    ):
        assert seen[f"{name}_count", model] == 2
        assert seen[f"{name}_sum", model] == total
    for name in ("queue_time", "prefill_time", "decode_time", "inference_time"):
        assert seen[f"vllm:request_{name}_seconds_count", model] == 2
    num_steps = cell.view().replicas[0].num_steps
    assert seen["vllm:iteration_tokens_total_count", model] == num_steps
    assert seen["quire:step_seconds_count", model] == num_steps
    assert seen["quire:worker_wait_seconds_sum", model] == pytest.approx(num_steps * 5e-6)
    assert seen["quire:plan_bytes_count", model] > num_steps
    assert seen["quire:step_age_seconds", model, "replica=replica"] > 0
    for reason, count in (("invalid", 1), ("overloaded", 0), ("draining", 1)):
        assert seen["quire:refused_requests_total", model, f"reason={reason}"] == count
    for name in ("overrun_tokens", "replays", "fenced_replicas", "stale_results"):
        assert (f"quire:{name}_total", model) in seen
    blocks = {key[-1]: value for key, value in seen.items() if key[0] == "quire:blocks"}
    assert sum(blocks.values()) == 64
    assert blocks["state=used"] == 1


def test_histogram_buckets_are_cumulative() -> None:
    histogram = Histogram("x", "", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    samples = {
        sample.labels.get("le", sample.name): sample.value
        for sample in histogram.family("m").samples
    }
    assert samples == {"1.0": 2, "2.0": 3, "+Inf": 4, "x_count": 4, "x_sum": 12}
