"""How long clients wait, and on whose behalf they ask: what the scheduler hears, and what ends."""

import asyncio
import json
from typing import Any

import anthropic
import grpc
import httpx
import pytest

from gateway.output import FinishReason
from protos.quire.v1 import inference_pb2, inference_pb2_grpc, scheduler_pb2
from quire import AsyncClient
from quire.errors import DeadlineExceeded
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

HELLO = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 9},
    "/v1/completions": {"prompt": "xyz", "max_tokens": 9},
    "/v1/responses": {"input": "xyz", "max_output_tokens": 9},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
}
QUICK = 0.05
"""Seconds."""


@pytest.mark.parametrize("path", BODIES)
async def test_a_timeout_is_told_to_the_scheduler(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str
) -> None:
    for body, headers, most in (
        ({"timeout": 30}, {}, 30),
        ({}, {"X-Request-Timeout": "20.5"}, 20.5),
        ({"timeout": 30}, {"X-Request-Timeout": "20"}, 20),
        ({"timeout": 10}, {"X-Request-Timeout": "20"}, 10),
    ):
        response = await http.post(path, json=BODIES[path] | body, headers=headers)
        assert response.status_code == 200, response.text
        assert most - 5 < scheduler.submits[-1].deadline_s <= most
    assert (await http.post(path, json=BODIES[path])).status_code == 200
    assert scheduler.submits[-1].deadline_s == 0


@pytest.mark.parametrize("knows", ["the scheduler", "the router"])
@pytest.mark.parametrize("path", BODIES)
async def test_what_waits_for_too_long_ends_with_504(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router, path: str, knows: str
) -> None:
    scheduler.hold_at = 0
    scheduler.deaf_to_deadlines = knows == "the router"
    for stream in (False, True):
        response = await http.post(path, json=BODIES[path] | {"timeout": QUICK, "stream": stream})
        assert response.status_code == 504, response.text
        error = response.json()["error"]
        assert error["type"] == "timeout_error"
        assert error["message"] == "timeout is 0.05 s; it passed before the first token came"
        if path != "/v1/messages":
            assert (error["code"], error["param"]) == ("timeout", None)
    await until(lambda: router.backend.permits.num_taken == 0)
    assert router.backend.engine._samples == {}
    # One whose time was over before it could be submitted was never accepted.
    finished = router.backend.metrics.finished
    await until(lambda: finished[FinishReason.TIMEOUT] == len(scheduler.submits))
    await until(lambda: scheduler.running == {})
    await until(lambda: router.backend.engine._leaving == set())


async def test_a_stream_whose_time_is_over_ends_with_an_error(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 3
    body = BODIES["/v1/completions"] | {"timeout": 0.3, "stream": True, "n": 2}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200
    *chunks, last = response.text.strip().split("\n\n")
    assert len(chunks) >= 2
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["message"] == "timeout is 0.3 s; it passed before the answer was complete"
    assert error["code"] == "timeout"


async def test_time_goes_on_while_there_is_no_scheduler(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 3
    body = BODIES["/v1/completions"] | {"timeout": 1.0}
    asking = asyncio.create_task(http.post("/v1/completions", json=body))
    await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [3])
    scheduler.replica_ids.clear()
    scheduler.kill()
    response = await asking
    assert response.status_code == 504
    assert router.backend.engine._samples == {}


async def test_what_is_submitted_anew_has_the_rest_of_its_time(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 3
    body = BODIES["/v1/completions"] | {"timeout": 50}
    headers = {"X-Tenant": "team-a"}
    asking = asyncio.create_task(http.post("/v1/completions", json=body, headers=headers))
    await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [3])
    (first,) = scheduler.submits
    assert not first.resubmitted
    scheduler.kill()
    scheduler.hold_at = None
    assert (await asking).status_code == 200
    again = scheduler.submits[-1]
    assert again.resubmitted
    assert 40 < again.deadline_s < first.deadline_s
    assert (first.tenant, again.tenant) == ("team-a", "team-a")


async def test_a_search_has_one_time_for_all_its_steps(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    body = BODIES["/v1/completions"] | {"timeout": 50, "use_beam_search": True, "n": 2}
    headers = {"X-Tenant": "team-a"}
    assert (await http.post("/v1/completions", json=body, headers=headers)).status_code == 200
    left = [submit.deadline_s for submit in scheduler.submits]
    assert len(left) > 2
    assert left == sorted(left, reverse=True)
    assert {submit.tenant for submit in scheduler.submits} == {"team-a"}


async def test_a_search_that_takes_too_long_is_one_request_that_did(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    body = {"prompt": "xyz", "max_tokens": 200, "timeout": 1.5, "use_beam_search": True, "n": 2}
    asking = asyncio.create_task(http.post("/v1/completions", json=body))
    await until(lambda: len(scheduler.submits) > 2)
    scheduler.hold_at = 0
    response = await asking
    assert response.status_code == 504
    ends = {reason: count for reason, count in router.backend.metrics.finished.items() if count}
    assert ends == {FinishReason.TIMEOUT: 1}
    assert router.backend.engine._samples == {}


async def test_vectors_have_a_time_too(start_router: StartRouter, scheduler: FakeScheduler) -> None:
    scheduler.embedding_dim = 4
    scheduler.hold_vectors = True
    async with start_router() as router, httpx.AsyncClient(base_url=router.address) as http:
        body = {"input": ["a", "b"], "timeout": QUICK}
        response = await http.post("/v1/embeddings", json=body, headers={"X-Tenant": "team-a"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    assert {submit.tenant for submit in scheduler.submits} == {"team-a"}


async def test_a_response_in_the_background_has_a_time_too(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 0
    body = BODIES["/v1/responses"] | {"timeout": QUICK, "background": True}
    told = (await http.post("/v1/responses", json=body, headers={"X-Tenant": "a"})).json()
    async with asyncio.timeout(10):
        while told["status"] in ("queued", "in_progress"):
            told = (await http.get(f"/v1/responses/{told['id']}")).json()
    assert told["status"] == "failed"
    assert "timeout is 0.05 s" in told["error"]["message"]
    assert scheduler.submits[-1].tenant == "a"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("timeout", 0, "timeout is 0; it must be above 0"),
        ("timeout", -1.5, "timeout is -1.5; it must be above 0"),
        ("timeout", 86401, "timeout is 86401; it must be at most 86400"),
        ("timeout", "5", 'timeout is "5"; it must be a number'),
        ("X-Request-Timeout", "0", "X-Request-Timeout is 0; it must be above 0"),
        ("X-Request-Timeout", "99999", "X-Request-Timeout is 99999; it must be at most 86400"),
        (
            *("X-Request-Timeout", "1e3"),
            'X-Request-Timeout is "1e3"; it must be a number of seconds, in digits, '
            "above 0 and at most 86400",
        ),
        (
            *("X-Request-Timeout", ""),
            'X-Request-Timeout is ""; it must be a number of seconds, in digits, '
            "above 0 and at most 86400",
        ),
        (
            *("X-Tenant", "a b"),
            'X-Tenant is "a b"; it must be 1 to 64 letters, digits or any of ._@:/-',
        ),
        (
            *("X-Tenant", ""),
            'X-Tenant is ""; it must be 1 to 64 letters, digits or any of ._@:/-',
        ),
        (
            *("X-Tenant", "x" * 65),
            f'X-Tenant is "{"x" * 47}…; it must be 1 to 64 letters, digits or any of ._@:/-',
        ),
    ],
)
async def test_what_is_no_time_and_no_tenant_is_refused(
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    path: str,
    name: str,
    value: Any,
    message: str,
) -> None:
    is_header = name.startswith("X-")
    response = await http.post(
        path,
        json=BODIES[path] | ({} if is_header else {name: value}),
        headers={name: value} if is_header else {},
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"] == message
    assert response.json()["error"].get("param", name) == name
    assert scheduler.submits == []


async def test_anthropics_client_knows_the_error(router: Router, scheduler: FakeScheduler) -> None:
    scheduler.hold_at = 0
    async with anthropic.AsyncAnthropic(
        base_url=router.address, api_key="none", max_retries=0
    ) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(
                model="tiny",
                max_tokens=9,
                messages=[{"role": "user", "content": "hello"}],
                extra_headers={"X-Request-Timeout": "0.05"},
            )
    assert caught.value.status_code == 504


async def test_a_call_over_grpc_has_its_deadline(router: Router, scheduler: FakeScheduler) -> None:
    async with grpc.aio.insecure_channel(router.grpc_address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(text="xyz")
        request.sampling.max_tokens = 3
        metadata = (("x-tenant", "team-a"),)
        async for _ in stub.Generate(request, timeout=30, metadata=metadata):
            pass
        assert 20 < scheduler.submits[-1].deadline_s < 31, "gRPC rounds a call's deadline up"
        assert scheduler.submits[-1].tenant == "team-a"
        request.timeout_s = 10
        async for _ in stub.Generate(request, timeout=30):
            pass
        assert 5 < scheduler.submits[-1].deadline_s <= 10
        async for _ in stub.Generate(inference_pb2.GenerateRequest(text="xyz")):
            break
        await until(lambda: scheduler.submits[-1].deadline_s == 0)
        scheduler.hold_at = 0
        request.timeout_s = QUICK
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(request, timeout=30):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.details() == (
            "timeout_s is 0.05 s; it passed before the first token came"
        )
        request.timeout_s = -1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(request):
                pass
        assert caught.value.details() == "timeout_s is -1; it must be above 0"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(request, metadata=(("x-tenant", "a b"),)):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with AsyncClient(router.grpc_address, timeout=QUICK) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("xyz")
    await until(lambda: router.backend.engine._samples == {})


@pytest.mark.parametrize(("told_s", "said"), [(0.0, "1"), (0.2, "1"), (7.01, "8")])
async def test_who_is_refused_for_load_hears_when_to_come_back(
    http: httpx.AsyncClient, scheduler: FakeScheduler, told_s: float, said: str
) -> None:
    scheduler.refusal = scheduler_pb2.Refusal(
        code=scheduler_pb2.REFUSAL_CODE_OVERLOADED,
        message="512 sequences are queued; the limit is 512",
        retry_after_s=told_s,
    )
    response = await http.post("/v1/completions", json=BODIES["/v1/completions"])
    assert response.status_code == 429
    assert response.headers["retry-after"] == said
    assert response.json()["error"]["message"] == "512 sequences are queued; the limit is 512"


async def test_a_request_that_crashes_workers_ends_with_500(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.error = "the worker was lost 2 times while it computed this request"
    response = await http.post("/v1/completions", json=BODIES["/v1/completions"])
    assert response.status_code == 500
    assert response.json()["error"]["message"] == scheduler.error
    assert response.json()["error"]["type"] == "server_error"
