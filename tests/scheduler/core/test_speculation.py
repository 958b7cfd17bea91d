"""Drafts: who may have how many, and that nobody can tell from the tokens."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scheduler.core.decisions import Plan
from scheduler.core.events import FinishReason, StepResult, WrongResult
from scheduler.core.speculation import Speculation
from tests.scheduler.core.cell import Cell, Key
from tests.scheduler.core.fake_worker import token_column


def drafting_cell(**capacity: Any) -> Cell:
    """One replica that drafts."""
    cell = Cell(watermark=0.0, max_draft_tokens=15)
    cell.attach(**{"num_blocks": 64, "max_draft_tokens": 15, "max_model_len": 200} | capacity)
    return cell


def drafts(plan: Plan) -> dict[int, int]:
    """Tokens that each slot may draft."""
    columns = (plan.draft_slot.tolist(), plan.draft_length.tolist())
    return dict(zip(*columns, strict=True))


# --- who may draft how much ----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_accepted_drafts_take_fewer_steps_for_the_same_tokens(depth: int) -> None:
    cell = drafting_cell()
    keys = [cell.submit([1, 2, 3 + i], 60, num_samples=1 + i) for i in range(2)]
    cell.run(depth=depth)
    cell.assert_at_rest()
    state = cell.scheduler.state()
    assert all(cell.end(key).num_output_tokens == 60 for key in keys)
    assert 0 < state.num_accepted_tokens < state.num_draft_tokens
    assert 0 < state.num_drafts <= state.num_draft_tokens
    assert cell.links["a"].worker.num_steps < 60


def test_prompts_leave_nothing_of_a_large_step() -> None:
    cell = drafting_cell()
    cell.submit([1, 2, 3], 60)
    cell.step()
    assert drafts(cell.step())
    cell.submit(list(range(1, 6)), 4)
    plan = cell.step()
    assert plan.chunk_length.tolist() == [5]
    assert drafts(plan) == {0: 7}, "6 tokens are a small step"
    cell.submit(list(range(20, 27)), 4)
    plan = cell.step()
    assert plan.chunk_length.tolist() == [7]
    assert not drafts(plan)


def test_prompts_have_the_budget_first() -> None:
    cell = drafting_cell(max_num_batched_tokens=6)
    cell.submit([1, 2, 3], 60)
    cell.step()
    assert cell.step().num_tokens <= 6
    cell.submit(list(range(1, 15)), 4)
    plan = cell.step()
    assert (plan.chunk_length.tolist(), drafts(plan), plan.num_tokens) == ([5], {}, 6)


@pytest.mark.parametrize(
    ("num_sequences", "each", "least"), [(1, 4, 2), (2, 4, 3), (3, 4, 4), (5, 6, 6), (7, 8, 8)]
)
def test_the_larger_a_step_the_less_is_left_and_the_more_it_takes(
    num_sequences: int, each: int, least: int
) -> None:
    cell = drafting_cell(max_num_seqs=20, max_num_batched_tokens=64)
    for i in range(num_sequences):
        cell.submit([1 + i], 40)
    cell.step()
    plan = cell.step()
    assert set(drafts(plan).values()) == {each}
    assert len(drafts(plan)) == num_sequences
    assert plan.max_draft_tokens == min(16 - num_sequences, num_sequences * each)
    assert plan.min_draft_tokens == least
    assert plan.num_tokens == num_sequences + plan.max_draft_tokens


@pytest.mark.parametrize("num_sequences", [8, 15, 16, 17])
def test_many_sequences_draft_nothing(num_sequences: int) -> None:
    cell = drafting_cell(max_num_seqs=20, max_num_batched_tokens=64)
    for i in range(num_sequences):
        cell.submit([1 + i], 40)
    cell.step()
    plan = cell.step()
    assert (drafts(plan), plan.num_tokens) == ({}, num_sequences)


@pytest.mark.parametrize(
    ("config", "max_draft_tokens", "can_draft"), [(0, 15, True), (15, 0, True), (15, 15, False)]
)
def test_nobody_drafts_where_one_of_three_says_no(
    config: int, max_draft_tokens: int, can_draft: bool
) -> None:
    cell = Cell(max_draft_tokens=config)
    cell.attach(max_draft_tokens=max_draft_tokens)
    key = cell.submit([1, 2], 20, can_draft=can_draft)
    cell.run(depth=2)
    assert cell.end(key).num_output_tokens == 20
    assert cell.scheduler.state().num_draft_tokens == 0
    assert cell.links["a"].worker.num_steps == 20


def test_no_draft_takes_a_block_that_somebody_waits_for() -> None:
    cell = drafting_cell(num_blocks=4, max_num_seqs=4)
    first = cell.submit([1, 2, 3], 8)
    cell.step()
    cell.submit([5] * 14, 2)  # needs every block, so it waits for the first
    held = {0: 1}
    while cell.scheduler.state().num_waiting:
        plan = cell.plan()
        for slot, index in zip(plan.append_slot.tolist(), plan.append_index.tolist(), strict=True):
            held[slot] = max(held.get(slot, 0), index + 1)
        if not plan.admit:
            confirmed = 3 + len(cell.output(first))
            furthest = confirmed + plan.max_draft_tokens
            assert held[0] <= -(-furthest // 4)
            assert held[0] == -(-confirmed // 4), "only its own next token needs a block"
        cell.deliver()
    cell.run()
    cell.assert_at_rest()


def test_success_makes_drafts_longer_and_failure_pauses_them() -> None:
    speculation = Speculation(15, step_tokens=16)
    speculation.enter(3)

    def settle(drafted: int, accepted: int, next_step: int) -> None:
        allowance = speculation.allow(next_step - 1, 1, 100)
        assert allowance is not None
        [(slot, planned)] = allowance.lengths
        speculation.plan(slot, planned)
        speculation.settle(
            slot,
            planned=planned,
            drafted=drafted,
            accepted=accepted,
            next_step=next_step,
            num_reserved=0,
        )

    def length(step: int) -> int:
        allowance = speculation.allow(step, 1, 100)
        return 0 if allowance is None else dict(allowance.lengths)[3]

    assert length(1) == 4
    settle(drafted=4, accepted=4, next_step=2)
    assert length(2) == 8
    settle(drafted=8, accepted=8, next_step=3)
    assert length(3) == 15
    settle(drafted=2, accepted=2, next_step=4)
    assert length(4) == 15, "that the worker found little says nothing against it"
    settle(drafted=15, accepted=5, next_step=5)
    assert length(5) == 6
    settle(drafted=0, accepted=0, next_step=6)
    assert length(6) == 6, "nor that it found nothing"
    settle(drafted=6, accepted=0, next_step=10)
    assert [length(step) for step in (10, 11, 12)] == [0, 0, 3]
    settle(drafted=3, accepted=0, next_step=20)
    assert [length(step) for step in (23, 24)] == [0, 2]
    for _ in range(10):
        settle(drafted=1, accepted=0, next_step=10**6)
        speculation._records[3].resumes_at -= 10**6
    speculation._records[3].resumes_at += 10**6
    assert [length(10**6 + step) for step in (63, 64)] == [0, 2]


# --- that nobody can tell ------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("num_blocks", [10, 14, 18])
def test_preemption_amid_drafts_changes_no_token(num_blocks: int, depth: int) -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=num_blocks, max_num_seqs=8, max_model_len=40, max_draft_tokens=15)
    keys = [cell.submit([i + 1] * 5, 30, eos_period=40) for i in range(6)]
    cell.run(depth=depth)
    cell.assert_at_rest()
    state = cell.scheduler.state()
    assert state.num_preemptions > 0
    assert state.num_accepted_tokens > 0
    ends = {cell.end(key).reason for key in keys}
    assert ends <= {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 17, 18, 19, 20])
def test_an_end_amid_accepted_drafts_is_exact(max_tokens: int, depth: int) -> None:
    cell = drafting_cell()
    keys = [cell.submit([i, 2], max_tokens, eos_period=20 * (i % 2)) for i in range(1, 5)]
    cell.run(depth=depth)
    cell.assert_at_rest()
    assert all(cell.end(key).num_output_tokens <= max_tokens for key in keys)
    assert cell.end(keys[1]).num_output_tokens == max_tokens


def test_a_lost_worker_and_a_lost_scheduler_cost_no_token() -> None:
    cell = drafting_cell()
    keys = [cell.submit([i, 2], 60) for i in range(1, 4)]
    for loss in range(6):
        for _ in range(3):
            cell.schedule()
            cell.deliver()
        cell.schedule()
        if loss % 2:
            cell.restart_scheduler()
        else:
            cell.detach(blame=False)
            cell.attach(num_blocks=64, max_draft_tokens=15, max_model_len=200)
    cell.run(depth=2)
    assert all(cell.end(key).num_output_tokens == 60 for key in keys)
    assert cell.scheduler.state().num_accepted_tokens > 0


def test_blocks_full_of_accepted_tokens_are_found_again() -> None:
    cell = drafting_cell()
    key = cell.submit([1, 2, 3], 37)
    cell.run(depth=2)
    assert cell.scheduler.state().num_accepted_tokens > 0
    again = cell.submit([1, 2, 3, *cell.output(key)], 4)
    cell.run()
    assert cell.end(again).num_cached_tokens == 36, "all nine full blocks whose KV is there"


def test_a_stop_string_amid_accepted_drafts() -> None:
    cell = drafting_cell()
    key = cell.submit([1, 2, 3], 60)
    while len(cell.output(key)) < 20:
        cell.step()
    cell.schedule()
    [finished] = cell.finish(key, 17)
    assert (finished.reason, finished.num_output_tokens) == (FinishReason.STOP, 17)
    cell.run()
    cell.assert_at_rest()
    again = cell.submit([1, 2, 3, *cell.output(key)[:19]], 4)
    cell.run()
    assert cell.end(again).num_cached_tokens == 20, "nothing beyond the stop string is offered"


def events(cell: Cell) -> list[Any]:
    """A story with drafts, preemption and an abort; returns every plan in full."""
    cell.attach(num_blocks=12, max_draft_tokens=15, max_model_len=40)
    keys = [cell.submit([i + 1] * 5, 30, eos_period=40) for i in range(5)]
    plans = []
    for step in range(200):
        while len(cell.links["a"].sent) < 2 and (plan := cell.schedule()) is not None:
            plans.append(plan)
        if not cell.links["a"].sent:
            break
        if step == 20 and keys[3] in cell.unfinished():
            cell.abort(keys[3])
        cell.deliver()
    cell.run()
    return [
        [value.tolist() if isinstance(value, np.ndarray) else value for value in columns]
        for columns in ([getattr(plan, name) for name in _COLUMNS] for plan in plans)
    ]


_COLUMNS = [name for name in Plan.__slots__ if name not in ("admit",)]


def test_the_same_events_give_the_same_plans() -> None:
    one, other = Cell(watermark=0.0), Cell(watermark=0.0)
    assert events(one) == events(other)
    assert one.scheduler.state() == other.scheduler.state()
    assert one.scheduler.state().num_accepted_tokens > 0
    assert one.scheduler.state().num_preemptions > 0


# --- results that cannot be ----------------------------------------------------------------------


def drafted_result(cell: Cell, key: Key) -> tuple[StepResult, int]:
    """A result in which one slot has several tokens, none of them applied; and the slot."""
    for _ in range(100):
        plan = cell.plan()
        result = cell.links["a"].worker.execute(plan)
        if len(result.slot) > 2:
            return result, int(result.slot[0])
        cell._hear(cell.scheduler.apply("a", result, cell._tick()))
        cell.links["a"].sent.popleft()
        cell.links["a"].aboard.popleft()
    raise AssertionError("nothing was accepted")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"drafted": token_column([])}, "tells of 0 drafts; its plan has 1"),
        ({"drafted": token_column([-1])}, "drafts that its plan does not allow"),
        ({"drafted": token_column([99])}, "drafts that its plan does not allow"),
        ({"drafted": token_column([1])}, "more tokens for slot 0 than it drafted"),
        ({"finish": 1}, "a token after an end"),
        ({"generation": 5}, "gives a slot to two sequences"),
    ],
)
def test_a_result_that_its_plan_cannot_have_is_refused(
    change: dict[str, Any], complaint: str
) -> None:
    cell = drafting_cell()
    result, _ = drafted_result(cell, cell.submit([1, 2, 3], 60))
    for name, value in change.items():
        if isinstance(value, int):
            column = getattr(result, name).copy()
            column[0 if name == "finish" else -1] = value
            change = {name: column}
    with pytest.raises(WrongResult, match=complaint):
        cell.scheduler.apply("a", replace(result, **change), 1.0)


def test_more_tokens_for_who_does_not_draft_are_refused() -> None:
    cell = Cell()
    cell.attach()
    cell.submit([1, 2], 20)
    cell.step()
    plan = cell.plan()
    result = cell.links["a"].worker.execute(plan)
    twice: dict[str, Any] = {
        name: np.repeat(getattr(result, name), 2)
        for name in ("slot", "generation", "token_id", "finish")
    }
    with pytest.raises(WrongResult, match="more tokens for slot 0"):
        cell.scheduler.apply("a", replace(result, **twice), 1.0)
