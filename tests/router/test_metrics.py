"""What /metrics counts: requests where it says requests, however many samples each has."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from protos.quire.v1 import scheduler_pb2
from router import metrics
from router.readiness import Readiness
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

XYZ: dict[str, Any] = {"model": "tiny", "prompt": "xyz", "max_tokens": 4}
PATH = "/v1/completions"
ENDS = "vllm:request_success_total"


async def scrape(http: httpx.AsyncClient) -> Callable[..., float]:
    """Looks a value up by name and labels."""
    lines = (await http.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    def value(name: str, **labels: str) -> float:
        pairs = {**labels, "model_name": "tiny"}
        wanted = [f'{key}="{value}"' for key, value in pairs.items()]
        (found,) = [
            float(count)
            for series, count in values.items()
            if series.startswith(name + "{") and all(pair in series for pair in wanted)
        ]
        return found

    return value


async def ends(http: httpx.AsyncClient) -> dict[str, float]:
    """Requests by how they ended, those of which there are any."""
    value = await scrape(http)
    counts = {
        reason: value(ENDS, finished_reason=reason)
        for reason in ("stop", "length", "abort", "timeout", "error")
    }
    return {reason: count for reason, count in counts.items() if count}


async def test_nothing_is_counted_before_a_client_asks(http: httpx.AsyncClient) -> None:
    """The router has asked for a token itself by then."""
    value = await scrape(http)
    assert await ends(http) == {}
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency"):
        assert value(f"vllm:{name}_seconds_count") == 0
    assert value("vllm:prompt_tokens_total") == value("vllm:generation_tokens_total") == 0


async def test_every_answer_is_counted_by_path_and_status(start_router: StartRouter) -> None:
    """Refusals above all; under names that no client makes up."""
    async with (
        start_router(api_key="secret", max_in_flight=1) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        key = {"authorization": "Bearer secret"}
        await http.post(PATH, json=XYZ)
        http.headers.update(key)
        await http.post(PATH, json=XYZ)
        await http.post(PATH, json=XYZ | {"stream": True})
        await http.post(PATH, json=XYZ | {"max_tokens": -1})
        with router.backend.permits.permit("default"):
            await http.post(PATH, json=XYZ)
        for name in ("tiny", "another"):
            await http.get(f"/v1/models/{name}")
        await http.get("/nowhere/1")
        await http.request("PROPFIND", "/nowhere/2")
        value = await scrape(http)

        def count(handler: str, method: str, status: int) -> float:
            labels = {"handler": handler, "method": method, "status": str(status)}
            return value("http_requests_total", **labels)

        assert [count(PATH, "POST", status) for status in (200, 400, 401, 429)] == [2, 1, 1, 1]
        assert [count("/v1/models/{name}", "GET", status) for status in (200, 404)] == [1, 1]
        assert (count("none", "GET", 404), count("none", "other", 404)) == (1, 1)


async def test_a_crash_is_counted(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Readiness) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Readiness, "why_not", fail)
    assert (await http.get("/ready")).status_code == 500
    value = await scrape(http)
    assert value("http_requests_total", handler="/ready", method="GET", status="500") == 1


async def test_samples_and_prompts(http: httpx.AsyncClient) -> None:
    await http.post(PATH, json=XYZ | {"n": 3})
    await http.post(PATH, json=XYZ | {"prompt": ["xyz", "xyz"], "n": 2})
    await http.post(PATH, json=XYZ | {"max_tokens": 30, "stop": "zx"})
    value = await scrape(http)
    assert await ends(http) == {"length": 3, "stop": 1}
    assert value("vllm:time_to_first_token_seconds_count") == 4
    assert value("vllm:e2e_request_latency_seconds_count") == 4
    assert value("quire:requests_in_flight") == 0
    num_tokens = value("vllm:generation_tokens_total")
    assert num_tokens > 7 * 4
    assert value("vllm:inter_token_latency_seconds_count") == num_tokens - 8
    assert value("vllm:request_time_per_output_token_seconds_count") == 8


async def test_a_request_of_which_one_sample_fails_is_one_error(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.error = "not a number"
    assert (await http.post(PATH, json=XYZ | {"n": 2})).status_code == 500
    value = await scrape(http)
    assert await ends(http) == {"error": 1}
    assert value("vllm:e2e_request_latency_seconds_count") == 0


async def test_what_the_server_ends_is_one_abort(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    async with start_router() as router:
        scheduler.hold_at = 2
        engine = router.backend.engine
        async with httpx.AsyncClient(base_url=router.address, timeout=20) as http:
            asking = asyncio.create_task(http.post(PATH, json=XYZ | {"n": 2}))
            await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [2, 2])
            engine.end_all("enough")
            assert (await asking).status_code == 503
            assert await ends(http) == {"abort": 1}


async def test_what_the_scheduler_refuses_was_never_a_request(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    code = scheduler_pb2.REFUSAL_CODE_INVALID
    scheduler.refusal = scheduler_pb2.Refusal(code=code, message="why not")
    assert (await http.post(PATH, json=XYZ | {"n": 2})).status_code == 400
    assert await ends(http) == {}


async def test_tenants_have_rows_of_their_own_up_to_a_number(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_TENANTS", 2)
    for tenant in ("a", "b", "c", "a", "d", ""):
        headers = {"X-Tenant": tenant} if tenant else {}
        assert (await http.post(PATH, json=XYZ | {"n": 2}, headers=headers)).status_code == 200
    value = await scrape(http)
    for tenant, count in (("a", 2), ("b", 1), ("*", 2)):
        assert value("quire:tenant_requests_total", tenant=tenant) == count
        assert value("quire:tenant_prompt_tokens_total", tenant=tenant) == 3 * count
        assert value("quire:tenant_generation_tokens_total", tenant=tenant) == 8 * count
    text = (await http.get("/metrics")).text
    assert text.count("quire:tenant_requests_total{") == 3
    assert "quire:key_requests_total{" not in text


async def test_a_request_whose_time_is_over_is_counted_as_such(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 2
    assert (await http.post(PATH, json=XYZ | {"timeout": 0.1})).status_code == 504
    assert await ends(http) == {"timeout": 1}
