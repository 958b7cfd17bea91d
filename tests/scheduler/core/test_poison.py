"""Workers die of a request: who is suspected, how that is found out, and whom it costs what."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.blame import CLEARING_TOKENS
from scheduler.core.decisions import Plan
from scheduler.core.events import FinishReason
from scheduler.core.quarantine import PARTS
from tests.scheduler.core.cell import Cell, Key

LENGTH, ERROR = FinishReason.LENGTH, FinishReason.ERROR


def cell_with(*replicas: str, **config: Any) -> Cell:
    cell = Cell(**config)
    for name in replicas:
        cell.attach(name, max_num_seqs=16, num_blocks=64)
    return cell


def reasons(cell: Cell, keys: Sequence[Key]) -> list[FinishReason]:
    return [cell.end(key).reason for key in keys]


def admitted(cell: Cell, plan: Plan) -> list[Key]:
    return [cell._key_of(admission.sampling, admission.seed) for admission in plan.admit]


def workers_lost_to_one(num_requests: int, max_losses: int = 2) -> int:
    """At most so many die of one poisonous request among these."""
    num_tried, num_groups = num_requests, 1
    while num_tried > PARTS:
        num_tried, num_groups = ceil(num_tried / PARTS), num_groups + 1
    return max_losses + num_groups


def lose_with_everyone_aboard(cell: Cell, name: str = "a") -> None:
    cell.plan(name)
    cell.detach(name)
    cell.attach(name)


def test_the_culprit_alone_ends_and_is_told_why() -> None:
    cell = cell_with("a", "b")
    keys = [cell.submit([i + 1] * 4, 20) for i in range(8)]
    culprit = cell.submit([1, 2, 3], 20, crashes_at=9)
    cell.run(depth=2)
    assert reasons(cell, keys) == [LENGTH] * 8
    end = cell.end(culprit)
    assert end.reason is ERROR
    assert "lost 3 times" in end.message
    assert "no other request beside it" in end.message
    assert cell.output(culprit), "what came before the crash was told"
    assert cell.num_crashes == 3
    assert cell.scheduler.state().num_convicted == 1
    cell.assert_at_rest()


def test_suspects_are_tried_one_at_a_time_while_others_go_on_elsewhere() -> None:
    cell = cell_with("a")
    keys = [cell.submit([i + 1] * 3, 30) for i in range(3)]
    lose_with_everyone_aboard(cell)
    cell.plan("a")
    cell.detach("a")
    cell.attach("b")
    assert cell.scheduler.state().num_suspects == 3
    cell.attach("a")
    late = cell.submit([9] * 3, 30)
    assert admitted(cell, cell.step("b")) == [keys[2]], "the replica that came first is reserved"
    assert admitted(cell, cell.step("a")) == [late]
    cell.run(depth=2)
    assert reasons(cell, [*keys, late]) == [LENGTH] * 4
    assert cell.scheduler.state().num_suspects == 0


def test_an_acquitted_suspect_leaves_the_plans_before_the_next_one_enters_them() -> None:
    cell = cell_with("a")
    keys = [cell.submit([i + 1] * 3, 28) for i in range(2)]
    for _ in range(2):
        lose_with_everyone_aboard(cell)
    order = []
    for _ in range(200):
        while len(cell.links["a"].sent) < 3 and (plan := cell.schedule("a")) is not None:
            order += admitted(cell, plan)
            assert len(cell.links["a"].aboard[-1]) <= (2 if len(order) > 2 else 1)
        if not cell.links["a"].sent:
            break
        aboard = set().union(*cell.links["a"].aboard)
        assert len(aboard) == 1 or len(order) > 2, "two suspects in flight at once"
        cell.deliver("a")
    assert [keys.index(key) for key in order] == [1, 0, 0, 1], "the newest is tried first"
    assert reasons(cell, keys) == [LENGTH] * 2


def test_a_trial_is_short() -> None:
    cell = cell_with("a")
    other, suspect = cell.submit([1] * 3, 40), cell.submit([2] * 3, 40)
    for _ in range(2):
        lose_with_everyone_aboard(cell)
    cell.step()
    while len(cell.links["a"].worker.tenants) and cell.output(other) == []:
        cell.schedule()
        if cell.links["a"].sent:
            cell.deliver()
    assert 2 * CLEARING_TOKENS <= len(cell.output(suspect)) <= 2 * CLEARING_TOKENS + 4


def test_who_crashes_in_a_plan_sent_before_its_acquittal_is_the_culprit_all_the_same() -> None:
    cell = cell_with("a", "b", max_losses=1)
    key = cell.submit([1] * 3, 40, crashes_at=3 + CLEARING_TOKENS)
    cell.plan("a")
    cell.detach("a")
    cell.attach("a")
    while not cell.num_crashes:
        while len(cell.links["a"].sent) < 3 and cell.schedule("a") is not None:
            pass
        cell.deliver("a")
    assert cell.end(key).reason is ERROR


def test_with_one_replica_bystanders_and_new_requests_wait_for_the_trials() -> None:
    cell = cell_with("a")
    suspects = [cell.submit([i + 1] * 3, 8) for i in range(2)]
    for _ in range(2):
        lose_with_everyone_aboard(cell)
    late = cell.submit([5] * 3, 8)
    assert admitted(cell, cell.step()) == [suspects[1]]
    assert cell.scheduler.state().num_waiting == 2
    cell.run()
    assert reasons(cell, [*suspects, late]) == [LENGTH] * 3


def test_progress_clears_of_a_loss() -> None:
    cell = cell_with("a")
    key = cell.submit([1] * 3, 45)
    cell.step()
    lose_with_everyone_aboard(cell)
    while len(cell.output(key)) < 2 * CLEARING_TOKENS:
        cell.step()
    lose_with_everyone_aboard(cell)
    assert cell.scheduler.state().num_suspects == 0
    cell.step()
    lose_with_everyone_aboard(cell)
    assert cell.scheduler.state().num_suspects == 1, "without progress since"
    cell.run()
    assert cell.end(key).reason is LENGTH


def test_a_prompt_in_chunks_is_suspect_like_any_other() -> None:
    cell = Cell(max_losses=1)
    cell.attach(max_num_batched_tokens=4)
    long, waiting = cell.submit([1] * 20, 4), cell.submit([2], 4)
    cell.step()
    cell.schedule()
    cell.detach()
    assert cell.scheduler.state().num_suspects == 1, "who waited was not aboard"
    cell.attach(max_num_batched_tokens=4)
    cell.step()
    cell.schedule()
    [finished] = cell.detach()
    assert cell.end(long) is finished
    assert finished.num_preemptions == 2
    assert cell.unfinished() == [waiting]


def test_a_replica_lost_with_nothing_in_flight_makes_nobody_suspect() -> None:
    cell = Cell(max_losses=1)
    cell.attach()
    key = cell.submit([1], 6)
    for _ in range(3):
        cell.step()
        assert cell.detach() == []
        cell.attach()
    assert cell.scheduler.state().num_suspects == 0
    cell.run()
    assert cell.end(key).reason is LENGTH


def test_a_replica_that_leaves_of_its_own_accord_makes_nobody_suspect() -> None:
    cell = Cell(max_losses=1)
    cell.attach()
    key = cell.submit([1], 6)
    for _ in range(3):
        cell.schedule()
        assert cell.detach(blame=False) == []
        cell.attach()
    assert cell.scheduler.state().num_suspects == 0
    cell.run()
    assert cell.end(key).reason is LENGTH


def test_a_replica_that_leaves_in_the_middle_of_a_trial_proves_nothing() -> None:
    cell = cell_with("a", max_losses=1)
    key = cell.submit([1] * 3, 20)
    lose_with_everyone_aboard(cell)
    cell.schedule()
    assert cell.detach(blame=False) == []
    assert cell.scheduler.state().num_suspects == 1
    cell.attach()
    cell.run()
    assert cell.end(key).reason is LENGTH


def test_a_trial_ends_with_an_abort() -> None:
    cell = cell_with("a", max_losses=1)
    suspects = [cell.submit([i + 1] * 3, 20) for i in range(3)]
    lose_with_everyone_aboard(cell)
    cell.schedule()
    cell.abort(suspects[2])
    cell.abort(suspects[1])
    assert cell.schedule() is None, "a plan with the first is still in flight"
    cell.deliver()
    assert admitted(cell, cell.step()) == [suspects[0]]
    cell.run()
    assert cell.end(suspects[0]).reason is LENGTH
    assert cell.scheduler.state().num_suspects == 0


def test_samples_of_one_request_are_suspects_together_and_end_together() -> None:
    cell = cell_with("a", "b", max_num_seqs=4)
    bystander = cell.submit([9] * 3, 20)
    family = cell.submit([1] * 6, 20, num_samples=3, crashes_at=8)
    cell.run(depth=2)
    assert [cell.end(family, i).reason for i in range(3)] == [ERROR] * 3
    assert cell.end(bystander).reason is LENGTH
    assert cell.num_crashes == 3


def test_several_culprits_cost_three_workers_each() -> None:
    cell = cell_with("a", "b")
    culprits = [cell.submit([i + 1] * 3, 20, crashes_at=3) for i in range(3)]
    others = [cell.submit([i + 1] * 4, 20) for i in range(5)]
    cell.run(depth=2)
    assert reasons(cell, culprits) == [ERROR] * 3
    assert reasons(cell, others) == [LENGTH] * 5
    assert cell.num_crashes <= 3 * 3


def test_a_prompt_that_wants_its_vector_can_be_a_culprit() -> None:
    cell = cell_with("a")
    culprit, other = cell.submit([1] * 5, 0, crashes_at=4), cell.submit([2] * 5, 0)
    cell.run()
    assert reasons(cell, [culprit, other]) == [ERROR, FinishReason.STOP]


def test_a_replica_that_serves_is_cleared_when_none_comes_anew() -> None:
    cell = cell_with("a", "b", max_losses=1, trial_patience_s=10.0)
    keys = [cell.submit([i + 1] * 3, 30) for i in range(4)]
    for name in ("a", "b"):
        cell.step(name)
    cell.plan("a")
    cell.detach("a")
    waiting = {(s.request.router, s.sequence_id) for s in cell.scheduler._quarantine.waiting}
    suspects = [key for key in keys if key in waiting]
    assert len(suspects) == 2
    cell.step("b")
    assert cell.scheduler.state().num_suspects == 2
    cell.now += 10.0
    assert cell.schedule("b") is not None
    assert {*cell.links["b"].aboard[-1]} == {suspects[1]}
    assert cell.scheduler.state().num_waiting == 3
    cell.run()
    assert reasons(cell, keys) == [LENGTH] * 4


def test_a_suspect_that_only_another_replica_could_hold_waits_for_it() -> None:
    cell = Cell(max_losses=1)
    cell.attach("large", num_blocks=16)
    suspect = cell.submit([1] * 30, 8)
    lose = cell.plan("large")
    assert lose.admit
    cell.detach("large")
    cell.attach("small", num_blocks=4)
    late = cell.submit([2] * 3, 4)
    cell.run()
    assert cell.end(late).reason is LENGTH
    assert cell.unfinished() == [suspect]
    cell.attach("large", num_blocks=16)
    cell.run()
    assert cell.end(suspect).reason is LENGTH


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_culprit_is_found_nobody_else_ends_and_few_workers_are_lost(
    data: st.DataObject,
) -> None:
    replicas = ["a", "b", "c"][: data.draw(st.integers(1, 3), "replicas")]
    cell = Cell(trial_patience_s=0.02)
    for name in replicas:
        cell.attach(name, max_num_seqs=6, num_blocks=24)
    culprits: list[Key] = []
    innocents: list[Key] = []
    aborted: set[Key] = set()
    depth = data.draw(st.integers(1, 3), "depth")
    num_submitted = data.draw(st.integers(1, 12), "requests")
    for i in range(num_submitted):
        length, max_tokens = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 30))
        n = data.draw(st.sampled_from([1, 1, 2])) if max_tokens else 1
        crashes_at = None
        if data.draw(st.booleans(), "poisonous"):
            crashes_at = data.draw(st.integers(0, length + max(max_tokens, 1) - 2), "crashes at")
        key = cell.submit([i + 1] * length, max_tokens, num_samples=n, crashes_at=crashes_at)
        keys = [(key[0], key[1] + j) for j in range(n)]
        (innocents if crashes_at is None else culprits).extend(keys)
        for _ in range(data.draw(st.integers(0, 4), "steps")):
            for name in replicas:
                if name in cell.links:
                    while len(cell.links[name].sent) < depth and cell.schedule(name):
                        pass
                    if cell.links[name].sent:
                        cell.deliver(name)
        event = data.draw(st.sampled_from(["none", "none", "restart", "abort", "leave"]), "event")
        if event == "restart":
            cell.restart()
        elif event == "abort" and key in cell.unfinished():
            cell.abort(key)
            aborted.add(key)
        elif event == "leave" and "a" in cell.links:
            capacity = cell.links["a"].worker.capacity
            cell.detach("a", blame=False)
            cell.crashed["a"] = capacity
    cell.restart()
    cell.run(depth=depth)
    cell.assert_at_rest()
    num_poisonous = len({cell._request_of(*key) for key in culprits})
    assert cell.num_crashes <= num_poisonous * workers_lost_to_one(num_submitted)
    assert all(cell.end(key).reason is ERROR for key in culprits if key not in aborted)
    ends = {cell.end(key).reason for key in innocents if key not in aborted}
    assert ends <= {LENGTH, FinishReason.STOP}


@pytest.mark.parametrize("num_losses", [1, 4])
def test_the_progress_asked_for_doubles_with_each_loss(num_losses: int) -> None:
    cell = Cell(max_losses=9)
    cell.attach()
    key = cell.submit([1] * 3, 40)
    for _ in range(num_losses):
        lose_with_everyone_aboard(cell)
    sequence = cell.scheduler._sequences.find(*key)
    assert sequence is not None
    assert sequence.blame.cleared_at == 3 + (CLEARING_TOKENS << (num_losses - 1))
