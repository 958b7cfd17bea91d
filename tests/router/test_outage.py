"""Requests that come while scheduler or worker are away for a moment wait, like those in flight."""

import asyncio
import logging
from typing import Any

import grpc
import httpx
import pytest

from protos import backoff
from protos.quire.v1 import scheduler_pb2
from router import known_cell
from router.link import Link
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

PATH = "/v1/completions"
XYZ: dict[str, Any] = {"prompt": "xyz", "max_tokens": 30, "n": 2}
TEXT = ("xyz" * 30)[:30]


async def answered(asking: "asyncio.Task[httpx.Response]") -> None:
    response = await asking
    assert response.status_code == 200, response.text
    assert [choice["text"] for choice in response.json()["choices"]] == [TEXT] * 2


async def test_a_request_waits_for_a_scheduler_that_restarts(
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    router: Router,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.6)
    monkeypatch.setattr(backoff, "EAGER_S", 0.6)
    engine = router.backend.engine
    for kill in (scheduler.kill, scheduler.kill):
        kill()
        await until(lambda: engine.cell.incarnation is None)
        scheduler.submits.clear()
        asking = asyncio.create_task(http.post(PATH, json=XYZ))
        await until(lambda: len(engine._samples) == 2)
        assert engine.cell.incarnation is None, "it came back too early to test anything"
        assert (await http.get("/ready")).status_code == 503
        await answered(asking)
        assert len(scheduler.submits) == 2
    assert engine._samples == {}


async def test_nobody_waits_for_a_cell_that_is_given_up(
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    router: Router,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not who comes, not who waited for a worker when an operator began to drain it, and not who is
    on the way meanwhile; what is in flight goes on."""
    caplog.set_level(logging.INFO, "router")
    engine = router.backend.engine
    scheduler.hold_at = 4
    begun = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: len(scheduler.running) == 2)
    attached, scheduler.replica_ids = scheduler.replica_ids, []
    scheduler.tell_status()
    await until(lambda: not engine.cell.is_available)
    held = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: len(engine._samples) == 4)
    scheduler.draining, scheduler.replica_ids = True, attached
    scheduler.tell_status()
    scheduler.tell_status()
    refusals = [await held, await http.post(PATH, json=XYZ)]
    said = "the scheduler is draining and accepts no new requests"
    for refused in refusals:
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == said
    scheduler.hold_at = None
    await answered(begun)
    assert len(scheduler.submits) == 1
    assert caplog.text.count("the scheduler drains: new requests are refused") == 1


async def test_what_was_accepted_is_submitted_again_to_a_cell_that_is_given_up(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 4
    begun = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: len(scheduler.running) == 2)
    scheduler.draining = True
    scheduler.kill()
    scheduler.hold_at = None
    await answered(begun)
    assert [submit.resubmitted for submit in scheduler.submits] == [False, True, True]


async def test_who_is_refused_as_the_cell_begins_to_drain_does_not_wait(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    """The request and the news of the drain have crossed."""
    scheduler.refusal = scheduler_pb2.Refusal(
        code=scheduler_pb2.REFUSAL_CODE_OVERLOADED, message="the scheduler is draining"
    )
    scheduler.drains_on_submit = True
    refused = await http.post(PATH, json=XYZ)
    assert (refused.status_code, len(scheduler.submits)) == (503, 1)
    assert router.backend.engine.num_samples == 0


async def test_a_request_waits_for_a_worker_that_restarts(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    attached, scheduler.replica_ids = scheduler.replica_ids, []
    scheduler.tell_status()
    engine = router.backend.engine
    await until(lambda: not engine.cell.is_available)
    asking = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: len(engine._samples) == 2)
    scheduler.replica_ids = attached
    scheduler.tell_status()
    await answered(asking)


async def test_after_a_while_requests_are_refused_at_once(
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    router: Router,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_cell, "HOLD_S", 0.0)
    scheduler.replica_ids = []
    scheduler.tell_status()
    await until(lambda: not router.backend.engine.cell.is_available)
    refused = await http.post(PATH, json=XYZ)
    assert refused.status_code == 503
    assert refused.json()["error"]["message"] == "no worker is attached"
    assert int(refused.headers["retry-after"]) > 0


async def test_a_client_that_leaves_meanwhile_leaves_nothing(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.replica_ids = []
    scheduler.tell_status()
    engine = router.backend.engine
    await until(lambda: not engine.cell.is_available)
    leaving = asyncio.create_task(http.post(PATH, json=XYZ))
    await until(lambda: len(engine._samples) == 2)
    leaving.cancel()
    await until(lambda: not engine._samples)
    assert engine._leaving == set()
    assert scheduler.aborted == []


async def test_a_connection_that_is_only_read_is_no_connection(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps it from writing ends the link, and with it the process, where somebody sees it."""

    async def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Link, "_write", fail)
    async with start_router(until_ready=False) as router:
        [link] = [task for task in router.tasks if task.get_name() == "link"]
        async with asyncio.timeout(20):
            with pytest.raises(RuntimeError, match="a defect"):
                await link


async def test_a_reason_that_grpc_loses_is_not_told_in_its_words(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that is refused before it was written to has no status of its own."""
    ends = [
        (grpc.StatusCode.UNAUTHENTICATED, "the cluster token is wrong"),
        *[(grpc.StatusCode.INTERNAL, "Internal error from Core")] * 3,
    ]
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "EAGER_S", 0.01)

    async def refused(_: Link) -> None:
        if not ends:
            await asyncio.sleep(60.0)
        code, details = ends.pop(0)
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    monkeypatch.setattr(Link, "_session", refused)
    async with start_router(until_ready=False):
        await until(lambda: not ends)
    said = [record.message for record in caplog.records if record.name == "router.link"]
    assert [line.partition(": ")[2] for line in said] == [
        "the cluster token is wrong; dialling again"
    ]


async def test_routers_of_one_name_and_process_id_are_two(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    """As in containers; each is the same one when it comes back."""
    for _ in range(2):
        async with start_router() as router:
            scheduler.kill()
            await until(lambda: not router.backend.engine.cell.is_available)
            await until(lambda: router.backend.engine.cell.is_available)
    one, again, other, still = scheduler.router_ids
    assert one == again != other == still


async def test_a_router_has_the_name_that_it_is_given(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    """And still is not another one of that name, which may be there yet."""
    async with start_router(router_id="router-0"), start_router(router_id="router-0"):
        await until(lambda: len(scheduler.router_ids) == 2)
    one, other = scheduler.router_ids
    assert one.rpartition("-")[0] == other.rpartition("-")[0] == "router-0"
    assert one != other
