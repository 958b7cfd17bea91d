"""The simulation of lost workers loses those it should, and nobody but a culprit ends."""

from argparse import Namespace

import pytest

from bench.suspects import Scenario, Simulation

ARGUMENTS = Namespace(
    streams=24, tokens=80, restart=4.0, step_fixed=0.02, step_per_token=1e-3, seed=1
)


def test_two_kills_are_nobodys_doing() -> None:
    kills = ((1.0, "a"), (5.2, "a"))
    cost = Simulation(Scenario("two kills", 1, kills=kills), ARGUMENTS).run()
    assert (cost.workers_lost, cost.ended_with_error) == (2, 0)
    assert cost.slowed == 24
    assert 4.0 < cost.suspected_s < 4.0 + 8 * 1.0, "a restart and eight short trials"


@pytest.mark.parametrize(("num_poisons", "workers_lost"), [(0, 0), (1, 4), (2, 8)])
def test_each_culprit_costs_its_workers(num_poisons: int, workers_lost: int) -> None:
    cost = Simulation(Scenario("poisons", 1, num_poisons), ARGUMENTS).run()
    assert (cost.workers_lost, cost.ended_with_error) == (workers_lost, num_poisons)
