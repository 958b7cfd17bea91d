"""How far ahead to plan, and whom to blame for a late step."""

import asyncio

import pytest

from scheduler.pacing import Pace, StepWatch
from tests.scheduler.peers import eventually


def test_short_steps_are_planned_two_ahead() -> None:
    pace = Pace()
    assert pace.depth == 2
    pace.observe(0.001, 1)
    assert pace.depth == 3
    for _ in range(20):
        pace.observe(0.02, 1)
    assert pace.depth == 2


def test_plans_go_ahead_of_a_long_step_when_it_is_near_its_end() -> None:
    pace = Pace()
    assert pace.hold_s(100) == 0
    pace.observe(0.1, 100)
    assert pace.hold_s(100) == pytest.approx(0.06)
    assert pace.hold_s(4) == 0, "nothing is known of such"
    pace.observe(0.02, 4)
    assert pace.hold_s(4) == 0


def test_patience_grows_with_what_a_step_has_to_compute() -> None:
    pace = Pace()
    assert pace.patience_s(10_000, floor_s=60) == 60
    pace.observe(0.05, 1_000)
    assert pace.patience_s(1_000, floor_s=0.5) == pytest.approx(0.7)
    assert pace.patience_s(2_000, floor_s=0.5) == pytest.approx(0.9)
    assert pace.patience_s(1, floor_s=0.5) == pytest.approx(0.7)
    assert pace.patience_s(1, floor_s=60) == 60


def test_a_short_step_may_take_many_times_longer_and_a_long_one_a_few() -> None:
    pace = Pace()
    pace.observe(0.1, 1)
    pace.observe(30.0, 1_000)
    assert pace.patience_s(1, floor_s=1) == pytest.approx(1.4)
    assert pace.patience_s(1, floor_s=60) == 60
    assert pace.patience_s(1_000, floor_s=60) == pytest.approx(180)


def test_steps_are_measured_against_those_of_their_size() -> None:
    """A long prompt does not excuse the short steps after it; they say nothing of the next one."""
    pace = Pace()
    for _ in range(5):
        pace.observe(0.04, 4)
    pace.observe(2.0, 1_000)
    for _ in range(100):
        pace.observe(0.04, 4)
    assert pace.expected_s(4) == pytest.approx(0.04)
    assert pace.expected_s(1_000) == pytest.approx(2.0)
    assert pace.expected_s(300) == pytest.approx(2.0)
    assert pace.expected_s(2_000) == pytest.approx(4.0)


def test_seconds_are_enough_once_steps_as_large_were_measured() -> None:
    pace = Pace()
    for _ in range(7):
        pace.observe(0.03, 60)
    assert pace.patience_s(60, floor_s=60) == 60
    pace.observe(0.03, 200)
    assert pace.patience_s(60, floor_s=60) == pace.patience_s(1, floor_s=60) == 5
    assert pace.patience_s(200, floor_s=60) == 60, "there was one"
    assert pace.patience_s(60, floor_s=60, prepares=True) == 60
    assert pace.patience_s(60, floor_s=1) == 1, "as told"


def test_a_machine_that_gets_busy_is_given_its_time() -> None:
    """Steps of half a second that now take ten times as long; and long ones."""
    pace = Pace()
    for _ in range(8):
        pace.observe(0.5, 60)
        pace.observe(4.0, 2_000)
    assert pace.patience_s(60, floor_s=60) == pytest.approx(10)
    assert pace.patience_s(2_000, floor_s=60) == pytest.approx(76)


async def test_a_late_step_is_looked_at_twice() -> None:
    """A process that was stopped finds a deadline passed and a result already in its socket."""
    now = 0.0
    expired: list[bool] = []
    looks: list[tuple[int, float] | None] = []
    oldest: list[tuple[int, float] | None] = [(1, -1.0), (2, -1.0), (3, -1.0), (3, -1.0)]

    def look() -> tuple[int, float] | None:
        looks.append(oldest[len(looks)])
        return looks[-1]

    watch = StepWatch(look, lambda: expired.append(True), clock=lambda: now, floor_s=0.001)
    watch.arm()
    await eventually(lambda: bool(expired))
    assert len(looks) == 4


async def test_a_watch_without_plans_sleeps() -> None:
    looks = []
    watch = StepWatch(lambda: looks.append(1), pytest.fail, clock=lambda: 0.0, floor_s=0.001)
    watch.arm()
    await asyncio.sleep(0)
    assert len(looks) == 1
    watch.stop()
