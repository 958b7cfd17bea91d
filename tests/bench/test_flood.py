"""A flood by one tenant, in modelled time: what another one notices, and how even shares are."""

import numpy as np
import pytest

from bench.flood import Replica, Shape, evenness, jain, one_at_a_time


def test_who_asks_one_thing_at_a_time_hardly_notices_a_flood() -> None:
    shape = Shape(prompt=1000, output=60)
    alone = one_at_a_time(Replica(16, 512, 2000), shape, count=4, think_s=0.3)
    replica = Replica(16, 512, 2000)
    replica.flood("A", shape, 60)
    beside = one_at_a_time(replica, shape, count=8, think_s=0.3)
    assert np.median(beside) <= 3 * np.median(alone)
    assert max(beside) <= 6 * max(alone)


def test_tenants_that_always_have_more_to_do_get_even_shares() -> None:
    shapes = {"prompts": Shape(800, 10), "outputs": Shape(20, 160), "small": Shape(40, 20)}
    assert evenness(Replica(16, 512, 2000), shapes, seconds=12.0, backlog=20) >= 0.97


def test_jains_index() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)
