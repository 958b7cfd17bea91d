"""Suspects are tried in groups: many innocents soon, one culprit among many with few workers."""

from math import ceil

import pytest

from scheduler.core.blame import CLEARING_TOKENS, Blame, Loss
from scheduler.core.decisions import Finished
from scheduler.core.quarantine import PARTS
from tests.scheduler.core.cell import Cell, Key
from tests.scheduler.core.test_poison import (
    ERROR,
    LENGTH,
    admitted,
    cell_with,
    reasons,
    workers_lost_to_one,
)


def large_cell(*replicas: str) -> Cell:
    cell = Cell()
    for name in replicas:
        attach(cell, name)
    return cell


def attach(cell: Cell, name: str) -> None:
    cell.attach(name, max_num_seqs=64, num_blocks=640, max_num_batched_tokens=256)


def lose(cell: Cell, name: str = "a") -> list[Finished]:
    """The worker is lost and started anew."""
    finished = cell.detach(name)
    attach(cell, name)
    return finished


def suspects(cell: Cell, num_requests: int, max_tokens: int = 40) -> list[Key]:
    """So many requests under which two workers were lost."""
    keys = [cell.submit([i + 1] * 3, max_tokens) for i in range(num_requests)]
    for _ in range(2):
        cell.plan()
        lose(cell)
    assert cell.scheduler.state().num_suspects == num_requests
    return keys


def test_a_group_that_makes_progress_is_acquitted_as_a_whole() -> None:
    cell = large_cell("a")
    keys = suspects(cell, 12)
    attach(cell, "b")
    trials: list[list[Key]] = []
    while cell.scheduler.state().num_suspects:
        plan = cell.step("a")
        if plan.admit:
            trials.append(admitted(cell, plan))
    assert trials[:6] == [keys[10:], keys[8:10], keys[6:8], keys[4:6], keys[2:4], keys[:2]]
    assert all(len(cell.output(key)) >= 2 * CLEARING_TOKENS for key in keys)
    cell.run()
    assert reasons(cell, keys) == [LENGTH] * 12


def test_who_has_no_room_beside_the_others_of_its_group_follows() -> None:
    cell = large_cell("a")
    keys = suspects(cell, 16)
    cell.detach()
    cell.attach("a", max_num_seqs=1, num_blocks=64)
    order = []
    while cell.scheduler.state().num_suspects:
        order += admitted(cell, cell.step())
    assert order[:4] == [keys[14], keys[15], keys[12], keys[13]]
    assert len(cell.unfinished()) == 16, "its room is free once the one before has made progress"
    cell.run(depth=2)
    assert reasons(cell, keys) == [LENGTH] * 16


@pytest.mark.parametrize("num_requests", [2, PARTS, PARTS + 1, 60])
def test_a_culprit_costs_as_many_workers_as_there_are_groups_in_groups(num_requests: int) -> None:
    cell = large_cell("a")
    keys = [cell.submit([i + 1] * 3, 20) for i in range(num_requests - 1)]
    culprit = cell.submit([99] * 3, 20, crashes_at=9)
    cell.run(depth=2)
    assert cell.end(culprit).reason is ERROR
    assert reasons(cell, keys) == [LENGTH] * (num_requests - 1)
    assert cell.num_crashes == workers_lost_to_one(num_requests)


@pytest.mark.parametrize(
    ("replicas", "num_culprits"),
    [(("a",), 0), (("a", "b"), 0), (("a", "b"), 1), (("a",), 2), (("a", "b"), 3)],
)
def test_sixty_four_streams_of_which_few_are_poison(
    replicas: tuple[str, ...], num_culprits: int
) -> None:
    cell = large_cell(*replicas)
    poisonous = [16 * (i + 1) for i in range(num_culprits)]
    keys = [
        cell.submit([i + 1] * 3, 30, crashes_at=10 + i // 16 if i in poisonous else None)
        for i in range(64)
    ]
    if not num_culprits:
        for name in (*replicas, *replicas)[:2]:
            cell.plan(name)
            lose(cell, name)
    cell.run(depth=2)
    assert reasons(cell, [keys[i] for i in poisonous]) == [ERROR] * num_culprits
    others = [key for i, key in enumerate(keys) if i not in poisonous]
    assert reasons(cell, others) == [LENGTH] * len(others)
    assert cell.num_crashes <= num_culprits * workers_lost_to_one(64)
    cell.assert_at_rest()


def test_a_culprit_explains_what_others_were_suspected_for() -> None:
    cell = large_cell("a")
    keys = [cell.submit([i + 1] * 3, 20) for i in range(11)]
    culprit = cell.submit([99] * 3, 20, crashes_at=9)
    num_suspects = []
    while not cell.scheduler.state().num_convicted:
        cell.step()
        num_suspects.append(cell.scheduler.state().num_suspects)
        cell.restart()
    assert num_suspects[-2] == 12, "its group comes first, so nobody was acquitted before"
    assert num_suspects[-1] == 0, "everyone else is released at once"
    assert cell.num_crashes == 4
    cell.run()
    assert cell.end(culprit).reason is ERROR
    assert reasons(cell, keys) == [LENGTH] * 11


def test_a_culprit_does_not_explain_what_it_had_no_part_in() -> None:
    cell = cell_with("a", "b", max_losses=1)
    elsewhere = cell.submit([1] * 3, 30)
    cell.plan("a")
    cell.detach("a")
    culprit = cell.submit([2] * 3, 30, crashes_at=0)
    beside = cell.submit([3] * 3, 30)
    cell.schedule("b")
    cell.deliver("b")
    assert cell.scheduler.state().num_suspects == 3
    cell.restart()
    while not cell.scheduler.state().num_convicted:
        cell.schedule("b")
        cell.deliver("b")
    [left] = cell.scheduler._quarantine.waiting
    assert (left.request.router, left.sequence_id) == elsewhere
    cell.restart()
    cell.run()
    assert cell.end(culprit).reason is ERROR
    assert reasons(cell, [elsewhere, beside]) == [LENGTH] * 2


def test_who_is_left_over_of_a_group_is_not_yet_a_culprit() -> None:
    cell = large_cell("a")
    suspects(cell, 10)
    plan = cell.step()
    first, last = admitted(cell, plan)
    cell.abort(first)
    while cell.links["a"].sent:
        cell.deliver()
    cell.plan()
    cell.plan()
    assert lose(cell) == [], "somebody else was on this worker"
    assert admitted(cell, cell.plan()) == [last], "tried alone before anybody else"
    [finished] = cell.detach()
    assert cell.end(last) is finished
    assert finished.reason is ERROR
    assert "lost 4 times" in finished.message


def test_a_group_that_loses_its_worker_is_tried_in_parts_before_the_others() -> None:
    cell = large_cell("a")
    num_requests = 2 * PARTS * PARTS // 4
    keys = suspects(cell, num_requests)
    group = keys[-ceil(num_requests / PARTS) :]
    assert admitted(cell, cell.plan()) == group
    assert lose(cell) == []
    part = group[-ceil(len(group) / PARTS) :]
    assert admitted(cell, cell.plan()) == part
    cell.run()
    assert reasons(cell, keys) == [LENGTH] * num_requests


def test_a_loss_in_a_trial_asks_for_no_more_progress() -> None:
    blame = Blame()
    asked = []
    for number, in_trial in enumerate((False, False, True, True, False)):
        blame.note(Loss(number, in_trial), num_known=3, num_reached=4)
        asked.append((blame.cleared_at - 4) // CLEARING_TOKENS)
    assert asked == [1, 2, 4, 4, 4]


def test_losses_that_progress_has_cleared_a_culprit_of_are_not_explained() -> None:
    before, during = Loss(1, in_trial=False), Loss(2, in_trial=True)
    blame = Blame()
    blame.note(before, num_known=3, num_reached=4)
    blame.note(during, num_known=blame.cleared_at, num_reached=20)
    blame.explain()
    assert (before.is_explained, during.is_explained) == (False, True)


def test_a_sample_that_outlives_the_suspected_one_is_tried_too() -> None:
    cell = Cell(max_losses=1)
    cell.attach(max_num_seqs=1)
    family = cell.submit([1] * 3, 20, num_samples=2)
    cell.plan()
    cell.detach()
    assert cell.scheduler.state().num_suspects == 2, "only one of them was aboard"
    cell.abort(family)
    cell.attach(max_num_seqs=1)
    cell.run()
    assert cell.end(family, 1).reason is LENGTH
    assert cell.scheduler.state().num_suspects == 0
