"""The order of service."""

from collections.abc import Sequence
from typing import Any

from tests.scheduler.core.cell import Cell


def serve_one_at_a_time(
    priorities: Sequence[int], *, gap_s: float = 0.0, **config: Any
) -> list[int]:
    """Indices of requests in the order of their admission; each arrives `gap_s` after the last."""
    cell = Cell(max_num_seqs=1, **config)
    keys = []
    for priority in priorities:
        keys.append(cell.submit([1, 2], 2, priority=priority))
        cell.now += gap_s
    cell.attach()
    served = []
    while cell.unfinished():
        plan = cell.step()
        served += [keys.index(cell._key_of(a.sampling, a.seed)) for a in plan.admit]
    return served


def test_fcfs_serves_by_arrival_whatever_the_priority() -> None:
    assert serve_one_at_a_time([5, 0, -5]) == [0, 1, 2]


def test_priority_serves_the_lower_number_first_and_by_arrival_within_it() -> None:
    assert serve_one_at_a_time([1, 0, 1, -1, 0], policy="priority") == [3, 1, 4, 0, 2]


def test_waiting_outweighs_priority_in_the_end() -> None:
    late = serve_one_at_a_time([1, 0], gap_s=5.0, policy="priority", aging_s=10.0)
    very_late = serve_one_at_a_time([1, 0], gap_s=15.0, policy="priority", aging_s=10.0)
    assert (late, very_late) == ([1, 0], [0, 1])
