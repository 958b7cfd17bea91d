"""Requests in flight: clients that leave or do not read, and schedulers that come and go."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from gateway.output import FinishReason
from protos.quire.v1 import scheduler_pb2
from router import engine, known_cell, link
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

XYZ: dict[str, Any] = {"prompt": "xyz", "max_tokens": 30}
PATH = "/v1/completions"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_aborted(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router, stream: bool
) -> None:
    scheduler.hold_at = 3
    leaving = asyncio.create_task(http.post(PATH, json={**XYZ, "n": 2, "stream": stream}))
    await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [3, 3])
    ids = sorted(scheduler.running)
    leaving.cancel()
    await until(lambda: sorted(scheduler.aborted) == ids)
    await until(lambda: router.backend.permits.num_taken == 0)
    assert router.backend.engine._samples == {}
    await until(lambda: router.backend.engine._leaving == set())
    assert router.backend.metrics.finished[FinishReason.ABORT] == 1


async def test_a_client_that_leaves_while_queued_is_aborted(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 0
    leaving = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: len(scheduler.submits) == 1)
    leaving.cancel()
    await until(lambda: scheduler.aborted == [scheduler.submits[0].sequence_id])


async def test_a_scheduler_that_restarts_is_a_pause(
    client: openai.AsyncOpenAI, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 4
    streams = [
        asyncio.create_task(collect(client, prompt=f"xyz{number}", seed=10 * number, n=2))
        for number in range(3)
    ]
    samples = router.backend.engine._samples
    await until(lambda: [len(sample.tokens) for sample in samples.values()] == [4] * 6)
    before = {submit.sequence_id: submit for submit in scheduler.submits}
    scheduler.submits.clear()
    scheduler.kill()
    scheduler.hold_at = None
    for number, texts in enumerate(await asyncio.gather(*streams)):
        assert texts == [(f"xyz{number}" * 30)[:30]] * 2
    assert len(scheduler.submits) == 6
    for again in scheduler.submits:
        first_id = max(i for i in before if i <= again.sequence_id)
        original = before[first_id]
        tokens = np.frombuffer(again.token_id, "<i4").tolist()
        prompt = np.frombuffer(original.token_id, "<i4").tolist()
        assert tokens == prompt + (prompt * 2)[:4]
        assert again.num_prompt_tokens == original.num_prompt_tokens
        assert (again.num_samples, again.max_tokens) == (1, 30)
        assert again.seed == original.seed + again.sequence_id - first_id
    assert router.backend.metrics.resubmitted == 6
    assert router.backend.engine._samples == {}


async def collect(client: openai.AsyncOpenAI, **request: Any) -> list[str]:
    """The texts of a streamed completion, by sample."""
    texts = [""] * request["n"]
    stream = await client.completions.create(model="tiny", max_tokens=30, stream=True, **request)
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    return texts


async def test_what_was_complete_when_the_scheduler_died_is_not_asked_again(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    """A stop string was found, but the scheduler's word on it is lost."""
    scheduler.deaf_to_finish = True
    asking = asyncio.create_task(http.post(PATH, json={"prompt": "xqzqx", "stop": ["zq"]}))
    await until(lambda: bool(scheduler.finishes))
    (running,) = scheduler.running.values()
    await until(lambda: running.num_output_tokens > 20)
    scheduler.kill()
    response = await asking
    assert response.json()["choices"][0]["text"] == "xq"
    assert response.json()["usage"]["completion_tokens"] == 4
    assert scheduler.finishes == [(running.sequence_id, 4)]
    assert len(scheduler.submits) == 1


async def test_an_overloaded_scheduler_gets_what_it_had_accepted_again(
    http: httpx.AsyncClient, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RETRY_S", 0.01)
    scheduler.hold_at = 4
    asking = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [4])
    scheduler.refusal = scheduler_pb2.Refusal(
        code=scheduler_pb2.REFUSAL_CODE_OVERLOADED, message="full"
    )
    scheduler.hold_at = None
    scheduler.kill()
    await until(lambda: len(scheduler.submits) >= 3)
    scheduler.refusal = None
    assert (await asking).json()["choices"][0]["text"] == "xyz" * 10


async def test_a_scheduler_that_stays_away_ends_what_waits_for_it(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 4
    async with (
        start_router(scheduler_timeout_s=0.05) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        asking = asyncio.create_task(http.post(PATH, json=XYZ))
        await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [4])
        scheduler.replica_ids = []
        scheduler.kill()
        response = await asking
        assert response.status_code == 503
        assert (
            "the scheduler was lost, and none came back in time"
            in response.json()["error"]["message"]
        )


@pytest.mark.parametrize("lost", ["all", "the large one"])
async def test_a_worker_that_stays_away_ends_what_waits_for_it(
    start_router: StartRouter, scheduler: FakeScheduler, lost: str
) -> None:
    """The last of a stream is an error; a worker too small for the request is not waited for."""
    scheduler.hold_at = 4
    async with (
        start_router(scheduler_timeout_s=0.05) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        asking = asyncio.create_task(http.post(PATH, json={**XYZ, "stream": True, "n": 2}))
        await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [4, 4])
        ids = sorted(scheduler.running)
        if lost == "all":
            scheduler.replica_ids = []
        else:
            scheduler.kv_blocks = 1
        scheduler.tell_status()
        response = await asking
        *_, last, end = response.text.split("\n\n")
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], end) == ("server_error", "")
        assert "the worker was lost, and none came back in time" in error["message"]
        await until(lambda: sorted(scheduler.aborted) == ids)
        assert router.backend.engine._samples == {}


async def test_a_worker_that_comes_back_in_time_is_a_pause(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 4
    async with (
        start_router() as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        asking = asyncio.create_task(http.post(PATH, json=XYZ))
        await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [4])
        scheduler.replica_ids = []
        scheduler.tell_status()
        await until(lambda: router.backend.engine._patience is not None)
        scheduler.replica_ids = ["r1"]
        scheduler.tell_status()
        await until(lambda: router.backend.engine._patience is None)
        scheduler.hold_at = None
        assert (await asking).json()["choices"][0]["text"] == "xyz" * 10


async def test_what_was_accepted_waits_for_a_worker_that_can_hold_it(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    """A restarted scheduler may meet its smaller worker first, and would refuse."""
    scheduler.hold_at = 4
    asking = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [4])
    scheduler.submits.clear()
    scheduler.hold_at = None
    scheduler.kv_blocks = 1
    scheduler.kill()
    await until(lambda: scheduler.incarnation == 2)
    await until(lambda: bool(router.backend.engine.cell.fresh_replicas()))
    assert (scheduler.submits, asking.done()) == ([], False)
    scheduler.kv_blocks = 2  # 32 tokens: the last of 33 needs no room
    scheduler.tell_status()
    assert (await asking).json()["choices"][0]["text"] == "xyz" * 10
    assert len(scheduler.submits) == 1


async def test_a_scheduler_that_hangs_is_dialled_again(
    start_router: StartRouter, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_S", 0.5)
    scheduler.status_interval_s = 0.05
    scheduler.hold_at = 4
    async with (
        start_router() as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        asking = asyncio.create_task(http.post(PATH, json=XYZ))
        await until(lambda: [s.num_output_tokens for s in scheduler.running.values()] == [4])
        await until(lambda: scheduler.num_statuses > 20)
        assert scheduler.incarnation == 1
        scheduler.mute = True
        await until(lambda: router.backend.engine.cell.incarnation is None)
        scheduler.mute = False
        scheduler.hold_at = None
        assert (await asking).json()["choices"][0]["text"] == "xyz" * 10
    assert scheduler.incarnation >= 2


async def test_each_scheduler_is_proven_by_a_token(
    router: Router, scheduler: FakeScheduler
) -> None:
    assert scheduler.num_canaries == 1
    scheduler.kill()
    scheduler.hold_canaries = True
    await until(lambda: scheduler.num_canaries == 2)
    assert router.backend.readiness.why_not() == "no token has been generated yet"
    scheduler.hold_canaries = False
    await until(router.backend.readiness.is_ready)
    assert (scheduler.num_canaries, scheduler.incarnation) == (2, 2)
    assert router.backend.metrics.generation_tokens == 0


async def test_a_worker_is_ready_during_a_long_step(
    router: Router, scheduler: FakeScheduler
) -> None:
    """The sign of life is old; what counts is how long the step may take."""
    scheduler.last_seen_s, scheduler.step_age_s = 30.0, 29.0
    scheduler.tell_status()
    fresh = router.backend.engine.cell.fresh_replicas
    await until(lambda: any(replica.step_age_s == 29.0 for replica in fresh()))
    assert router.backend.readiness.is_ready()
    scheduler.step_age_s = scheduler.step_patience_s + 1
    scheduler.tell_status()
    await until(lambda: not router.backend.readiness.is_ready())
    assert router.backend.readiness.why_not() == "no worker has given a sign of life lately"


async def test_each_replica_is_proven_since_it_attached(
    router: Router, scheduler: FakeScheduler
) -> None:
    """The scheduler is the same; its worker is not."""
    scheduler.hold_canaries = True
    scheduler.replica_ids = ["r1"]
    scheduler.tell_status()
    await until(lambda: scheduler.num_canaries == 2)
    assert router.backend.readiness.why_not() == "no token has been generated yet"
    scheduler.hold_canaries = False
    await until(router.backend.readiness.is_ready)
    assert scheduler.incarnation == 1


async def test_a_second_replica_causes_one_canary_and_no_doubt(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.status_interval_s = 0.01
    async with start_router() as router:
        scheduler.replica_ids = ["r0", "r1"]
        await until(lambda: scheduler.num_canaries == 2)
        told = scheduler.num_statuses
        await until(lambda: scheduler.num_statuses > told + 20)
        assert scheduler.num_canaries == 2
        assert router.backend.readiness.is_ready()
        scheduler.replica_ids = ["r1"]
        await until(lambda: scheduler.num_generated_tokens.get("r1") == 1)
        await until(router.backend.readiness.is_ready)
        assert scheduler.num_canaries == 3


async def test_a_worker_that_was_not_seen_lately_is_not_ready(
    router: Router, scheduler: FakeScheduler
) -> None:
    scheduler.last_seen_s = known_cell.FRESH_S + 1
    scheduler.tell_status()
    await until(lambda: not router.backend.readiness.is_ready())
    assert router.backend.readiness.why_not() == "no worker has given a sign of life lately"


async def test_a_client_that_does_not_read_is_ended_and_harms_nobody(
    start_router: StartRouter, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_UNREAD_TOKENS", 64)
    scheduler.max_model_len = 10_000_000
    body = json.dumps({**XYZ, "stream": True, "max_tokens": 1_000_000, "n": 32}).encode()
    async with start_router() as router:
        host, _, port = router.address.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        async with httpx.AsyncClient(base_url=router.address, timeout=20) as http:
            assert (await http.post(PATH, json=XYZ)).status_code == 200
        await until(lambda: len(scheduler.aborted) == 32)
        writer.close()
        await until(lambda: router.backend.permits.num_taken == 0)


async def test_ids_of_what_is_in_flight_are_not_used_again(router: Router) -> None:
    registry = router.backend.engine
    registry._next_id = (1 << 32) - 2
    registry._leaving = {2}
    assert registry._unused_ids(2) == (1 << 32) - 2
    assert registry._unused_ids(3) == 4
    registry.lost()
    assert registry._unused_ids(1) == 7
    registry._next_id = 1
    assert registry._unused_ids(2) == 1
