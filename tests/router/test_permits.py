"""Who is refused for want of a permit hears when its turn would come."""

import asyncio
from contextlib import ExitStack

import httpx
import pytest

from gateway.errors import Fault, RequestError
from router.permits import Permits
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def held(permits: Permits, clock: Clock, *, seconds: float, times: int) -> None:
    """So many permits have been held for so long, one after another."""
    for _ in range(times):
        with permits.permit():
            clock.now += seconds


def told(permits: Permits, tenant: str = "") -> int | None:
    with pytest.raises(RequestError) as caught:
        permits.check(tenant)
    assert caught.value.fault is Fault.OVERLOADED
    return caught.value.retry_after_s


def test_nobody_is_refused_while_there_is_one(clock: Clock) -> None:
    permits = Permits(2, "requests are in flight", clock=clock)
    with permits.permit():
        permits.check()


def test_each_hears_of_a_turn_of_its_own(clock: Clock) -> None:
    permits = Permits(4, "requests are in flight", clock=clock)
    held(permits, clock, seconds=20.0, times=50)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(permits.permit())
        assert [told(permits) for _ in range(6)] == [5, 10, 15, 20, 20, 20]
        clock.now += 20.0
        assert told(permits) == 5


def test_what_is_held_for_shorter_now_counts_more(clock: Clock) -> None:
    permits = Permits(1, "requests are in flight", clock=clock)
    held(permits, clock, seconds=100.0, times=50)
    held(permits, clock, seconds=2.0, times=100)
    with permits.permit():
        assert told(permits) == 3  # 2 s, and a little of the 100


def test_a_turn_is_a_second_at_least_and_ten_minutes_at_most(clock: Clock) -> None:
    permits = Permits(1, "requests are in flight", clock=clock)
    with permits.permit():
        assert told(permits) == 1
    held(permits, clock, seconds=0.01, times=9)
    with permits.permit():
        assert told(permits) == 1
    held(permits, clock, seconds=5000.0, times=9)
    with permits.permit():
        assert told(permits) == 600


def test_one_tenant_cannot_keep_the_others_out(clock: Clock) -> None:
    permits = Permits(8, "requests are in flight", clock=clock)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(permits.permit("rich"))
        told(permits, "rich")
        with permits.permit("poor"), permits.permit("poor"):
            assert permits.num_taken == 10
            told(permits, "poor")  # a quarter more is all
            told(permits, "newcomer")
            told(permits, "rich")
        permits.check("newcomer")
    permits.check("rich")


def test_even_shares_leave_nobody_more(clock: Clock) -> None:
    permits = Permits(8, "requests are in flight", clock=clock)
    with ExitStack() as stack:
        for tenant in ("one", "other") * 4:
            stack.enter_context(permits.permit(tenant))
        told(permits, "one")
        told(permits, "other")
        permits.check("newcomer")


async def test_a_flood_of_one_tenant_refuses_itself(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    async with (
        start_router(max_in_flight=4) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        scheduler.hold_at = 1
        scheduler.submits.clear()

        def ask(tenant: str) -> "asyncio.Task[httpx.Response]":
            body = {"prompt": "xyz", "max_tokens": 3}
            headers = {"X-Tenant": tenant}
            return asyncio.create_task(http.post("/v1/completions", json=body, headers=headers))

        flood = [ask("flood") for _ in range(4)]
        await until(lambda: len(scheduler.submits) == 4)
        assert (await ask("flood")).status_code == 429
        other = ask("other")
        await until(lambda: len(scheduler.submits) == 5)
        scheduler.hold_at = None
        answers = await asyncio.gather(*flood, other)
        assert {answer.status_code for answer in answers} == {200}
