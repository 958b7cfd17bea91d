"""The calls beside the two streams: state, drain, health, reflection."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.quire.v1 import admin_pb2, scheduler_pb2
from protos.trust import NO_TRUST
from quire.client.admin import drain, reset_prefix_cache
from quire.errors import RequestFailed
from scheduler.service import GrpcServer, PortTaken
from tests.scheduler.conftest import Serve, Served
from tests.scheduler.peers import FakeRank, FakeRouter, eventually, token_at, within_time


async def test_state_has_the_totals(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    working = asyncio.create_task(rank.work())
    await router.submit(1, list(range(40)), max_tokens=8)
    await router.until_finished(1)

    state = await served.stub.GetState(scheduler_pb2.GetStateRequest())

    assert state.incarnation == served.cell.incarnation
    assert state.num_routers == 1
    assert state.num_prefix_query_tokens == 40
    assert state.status.num_generated_tokens == 8
    (replica,) = state.status.replicas
    assert replica.num_steps >= 8
    assert replica.num_blocks_used == 0
    assert replica.num_blocks_free + replica.num_blocks_cached == replica.num_blocks_total == 64
    assert replica.num_blocks_cached == 2  # 40 prompt and 7 computed output tokens
    working.cancel()


async def test_state_tells_how_long_the_step_in_flight_has_run_and_may_run(serve: Serve) -> None:
    """A replica in a long step is told from one that is silent."""
    served = await serve(step_timeout_s=7.0)
    rank = await FakeRank.attached(served.address)
    (idle,) = (await _state(served)).status.replicas
    assert not idle.HasField("step_age_s")
    assert (idle.step_patience_s, idle.num_generated_tokens) == (0, 0)

    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)
    plan = await rank.plan()
    (first,) = (await _state(served)).status.replicas
    (later,) = (await _state(served)).status.replicas
    assert 0 <= first.step_age_s < later.step_age_s
    assert first.step_patience_s == 7

    await rank.answer(plan)
    await router.until_finished(1)
    (done,) = (await _state(served)).status.replicas
    assert not done.HasField("step_age_s")
    assert done.num_generated_tokens == 1


async def _state(served: Served) -> scheduler_pb2.GetStateResponse:
    state: scheduler_pb2.GetStateResponse = await served.stub.GetState(
        scheduler_pb2.GetStateRequest()
    )
    return state


async def test_a_draining_cell_finishes_and_admits_nothing(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=2)
    plan = await rank.plan()
    draining = asyncio.create_task(_drain(served))
    await eventually(lambda: served.cell.draining)

    await router.submit(2, [1, 2, 3])
    refusal = await router.refusal()
    assert (refusal.sequence_id, refusal.code) == (2, scheduler_pb2.REFUSAL_CODE_OVERLOADED)
    assert router.statuses[-1].draining
    assert not draining.done()
    await rank.answer(plan)
    working = asyncio.create_task(rank.work())
    await router.until_finished(1)
    await within_time(draining)
    assert router.tokens == {1: [token_at(3), token_at(4)]}
    await within_time(working)  # it was told to leave


async def test_a_cell_drains_whether_or_not_somebody_waits(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "scheduler.cell")
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=2)
    plan = await rank.plan()
    answer = await served.admin.Drain(admin_pb2.DrainRequest(timeout_s=0.05))
    assert answer.num_sequences == 1
    with pytest.raises(RequestFailed, match=r"still draining after 0\.05 s: 1 sequence left"):
        await drain(served.admin_address, NO_TRUST, 0.05)
    await rank.answer(plan)
    await within_time(rank.work())  # it is told to leave
    late = await FakeRank.attached(served.address)
    await within_time(late.work())
    assert router.finished.keys() <= {1}
    await router.until_finished(1)
    drained = await served.admin.Drain(admin_pb2.DrainRequest())
    assert drained.num_sequences == 0
    said = [record.message for record in caplog.records]
    assert said.count("an operator drains the cell: 1 sequence(s) left") == 1
    assert said.count("the cell is drained: its workers are told to leave") == 1


async def test_a_cell_that_drains_takes_what_was_accepted_before(served: Served) -> None:
    """Its router's connection broke, or the scheduler before it was lost."""
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=2)
    plan = await rank.plan()
    await served.admin.Drain(admin_pb2.DrainRequest(timeout_s=0.001))
    await router.submit(2, [1, 2, 3], max_tokens=2, resubmitted=True)
    await rank.answer(plan)
    await within_time(rank.work())
    await router.until_finished(2)
    await router.submit(3, [1, 2, 3], max_tokens=2, resubmitted=True)
    assert (await router.refusal()).sequence_id == 3  # nobody is left who could


async def test_an_operator_who_calls_the_port_of_routers_is_told(served: Served) -> None:
    with pytest.raises(RequestFailed, match="operators call at its --admin-listen"):
        await reset_prefix_cache(served.address, NO_TRUST)


async def _drain(served: Served) -> None:
    await served.admin.Drain(admin_pb2.DrainRequest())


async def test_an_operator_has_the_prefix_cache_forgotten(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    working = asyncio.create_task(rank.work())
    prompt = list(range(1, 40))
    for sequence_id in (1, 2):
        await router.submit(sequence_id, prompt, max_tokens=1)
        await router.until_finished(sequence_id)
    assert router.finished[2].num_cached_tokens > 0
    cached = (await _state(served)).status.replicas[0].num_blocks_cached
    answer = await served.admin.ResetPrefixCache(admin_pb2.ResetPrefixCacheRequest())
    assert answer.num_blocks == cached > 0
    assert (await _state(served)).status.replicas[0].num_blocks_cached == 0
    await router.submit(3, prompt, max_tokens=1)
    await router.until_finished(3)
    assert router.finished[3].num_cached_tokens == 0
    working.cancel()


async def test_nothing_that_an_operator_may_do_is_on_the_port_of_routers(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.address) as channel:
        for method in ("AdminService/Drain", "AdminService/ResetPrefixCache"):
            ask: Any = channel.unary_unary(f"/quire.v1.{method}")
            assert await ask(b"").code() is grpc.StatusCode.UNIMPLEMENTED
        ask = channel.unary_unary("/quire.v1.SchedulerService/Drain")
        assert await ask(b"").code() is grpc.StatusCode.UNIMPLEMENTED
    assert not served.cell.draining


async def test_an_idle_cell_drains_at_once(served: Served) -> None:
    await within_time(_drain(served))


async def test_a_dismissed_router_gets_its_last_news_first(served: Served) -> None:
    router = await FakeRouter.connected(served.address)
    served.cell.tick()
    served.cell.end_streams()
    await router.status()
    assert await router.end() == (
        grpc.StatusCode.UNAVAILABLE,
        "the scheduler is shutting down",
    )


async def test_two_schedulers_do_not_share_a_port(served: Served) -> None:
    with pytest.raises(PortTaken, match=served.address):
        GrpcServer.of_cell(served.cell).listen(served.address)


async def test_health_is_told_per_service(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "quire.v1.SchedulerService", "quire.v1.WorkerService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name


async def test_reflection_lists_the_services(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (answer,) = [response async for response in stub.ServerReflectionInfo(iter(asked))]
        names = {service.name for service in answer.list_services_response.service}
    assert names >= {
        "quire.v1.SchedulerService",
        "quire.v1.WorkerService",
        "grpc.health.v1.Health",
    }


async def test_a_quiet_core_is_checked_and_a_broken_one_is_counted(served: Served) -> None:
    """The books of a replica are tampered with; the cell says so and goes on."""
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    working = asyncio.create_task(rank.work())
    await router.submit(1, [1, 2, 3], max_tokens=1)
    await router.until_finished(1)
    served.cell.check_integrity()
    assert served.cell.metrics.num_integrity_failures == 0

    slots = served.cell._core._replicas["replica"].slots
    slot = slots._free.pop()
    served.cell.check_integrity()
    assert served.cell.metrics.num_integrity_failures == 1

    slots.free(slot)
    served.cell.metrics.num_integrity_failures = 0
    await router.submit(2, [1, 2, 3], max_tokens=1)
    await router.until_finished(2)
    working.cancel()
