"""/ready says the truth: about what is idle, what is busy with one long thing, and what stands."""

import logging
from collections.abc import AsyncIterator

import httpx
import jsonschema
import pytest

from router import readiness
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

PROBE_S, STALE_S = 0.1, 0.4


@pytest.fixture
async def impatient(
    start_router: StartRouter, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Router]:
    """A router that asks for a token as soon as there is none for a moment."""
    monkeypatch.setattr(readiness, "PROBE_S", PROBE_S)
    monkeypatch.setattr(readiness, "STALE_S", STALE_S)
    scheduler.status_interval_s = 0.01
    async with start_router() as router:
        yield router


async def statuses(scheduler: FakeScheduler, count: int) -> None:
    """So many more have been told."""
    told = scheduler.num_statuses
    await until(lambda: scheduler.num_statuses >= told + count)


async def test_what_is_idle_is_asked_for_a_token_now_and_then(
    impatient: Router, scheduler: FakeScheduler
) -> None:
    before = scheduler.num_canaries
    await until(lambda: scheduler.num_canaries >= before + 3)
    assert impatient.backend.readiness.is_ready()
    assert impatient.backend.metrics.generation_tokens == 0
    assert scheduler.submits == []


async def test_the_first_answer_is_said_once_and_then_that_one_answers_again(
    start_router: StartRouter, scheduler: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router")
    async with start_router() as router:
        ready = router.backend.readiness
        await until(lambda: "a first request has been computed" in caplog.text)
        for _ in range(2):
            caplog.clear()
            scheduler.kill()
            await until(lambda: not ready.is_ready())
            await until(lambda: "a replica answers again" in caplog.text)
            assert "a first request" not in caplog.text


async def test_what_stands_though_everybody_is_attached_is_not_ready(
    impatient: Router, scheduler: FakeScheduler
) -> None:
    scheduler.hold_canaries = True
    ready = impatient.backend.readiness
    await until(lambda: not ready.is_ready())
    assert ready.why_not() == "nothing has been computed for 0 s, though a worker is attached"
    assert ready.details()["probe"]["on_its_way_s"] > 0
    scheduler.hold_canaries = False
    await until(ready.is_ready)
    assert ready.details()["probe"]["last_failure"] is None


async def test_a_probe_that_nobody_answers_is_sent_again(
    impatient: Router, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "CANARY_S", 0.05)
    monkeypatch.setattr(readiness, "RETRY_S", 0.01)
    scheduler.hold_canaries = True
    before = scheduler.num_canaries
    await until(lambda: scheduler.num_canaries >= before + 2)
    ready = impatient.backend.readiness
    assert ready.details()["probe"]["last_failure"] == "no answer within 0.05 s"
    scheduler.hold_canaries = False
    await until(lambda: ready.details()["probe"]["last_failure"] is None)
    await until(lambda: impatient.backend.engine._samples == {})


async def test_one_long_step_is_no_alarm(impatient: Router, scheduler: FakeScheduler) -> None:
    """Nothing is heard of but its age, for much longer than anything else may take."""
    scheduler.step_age_s = 50.0
    fresh = impatient.backend.engine.cell.fresh_replicas
    await until(lambda: any(replica.step_age_s == 50.0 for replica in fresh()))
    await until(lambda: impatient.backend.readiness.details()["probe"]["on_its_way_s"] is None)
    before = scheduler.num_canaries
    await statuses(scheduler, 100)
    assert impatient.backend.readiness.details()["last_step_age_s"] > STALE_S
    assert impatient.backend.readiness.is_ready()
    assert scheduler.num_canaries == before
    scheduler.step_age_s = scheduler.step_patience_s
    await until(lambda: not impatient.backend.readiness.is_ready())


async def test_steps_without_a_token_are_no_alarm(
    impatient: Router, scheduler: FakeScheduler
) -> None:
    """A long prompt, chunk by chunk, seen between its steps."""
    ready = impatient.backend.readiness
    scheduler.num_steps += 1
    await statuses(scheduler, 2)
    await until(lambda: ready.details()["probe"]["on_its_way_s"] is None)
    before = scheduler.num_canaries
    for _ in range(60):
        scheduler.num_steps += 1
        await statuses(scheduler, 1)
        assert ready.is_ready()
    assert ready.details()["last_token_age_s"] > ready.details()["last_step_age_s"]
    assert scheduler.num_canaries <= before + 1  # a machine that stood still for a moment


async def test_the_numbers_are_told_as_documented(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    document = (await http.get("/openapi.json")).json()
    answers = document["paths"]["/ready"]["get"]["responses"]
    schema = answers["200"]["content"]["application/json"]["schema"]
    for address in ("/ready?verbose", "/ready?verbose=true"):
        response = await http.get(address)
        assert response.status_code == 200
        told = response.json()
        jsonschema.validate(told, schema | {"components": document["components"]})
        (replica,) = told["details"]["replicas"]
        assert (replica["replica_id"], replica["alive"]) == ("r0", True)
        assert told["details"]["scheduler"]["connected"]
        assert told["details"]["samples_in_flight"] == 0
    assert (await http.get("/ready?verbose=false")).json() == {"status": "ready"}
    wrong = await http.get("/ready?verbose=maybe")
    assert wrong.json()["error"]["message"] == 'verbose is "maybe"; it must be true or false'
    scheduler.last_seen_s = 60.0
    scheduler.tell_status()
    await until(lambda: not router.backend.readiness.is_ready())
    response = await http.get("/ready?verbose")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"]["message"] == "no worker has given a sign of life lately"
    (replica,) = response.json()["details"]["replicas"]
    assert not replica["alive"]
    assert replica["last_seen_s"] >= 60.0
    assert (await http.get("/health")).json() == {"status": "alive"}


async def test_the_numbers_need_the_key(start_router: StartRouter) -> None:
    async with (
        start_router(api_key="secret") as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        assert (await http.get("/ready")).status_code == 200
        assert (await http.get("/ready?verbose")).status_code == 401
        said = {"authorization": "Bearer secret"}
        assert (await http.get("/ready?verbose", headers=said)).status_code == 200


async def test_a_router_without_a_scheduler_says_so(start_router: StartRouter) -> None:
    async with (
        start_router(until_ready=False, scheduler="127.0.0.1:1") as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        response = await http.get("/ready?verbose")
    assert response.status_code == 503
    assert response.json()["details"]["scheduler"] == {
        "connected": False,
        "incarnation": None,
        "draining": False,
        "status_age_s": None,
    }
