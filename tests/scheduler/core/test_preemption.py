"""Blocks run out: who yields, who goes on, and that nobody can tell from the tokens."""

from collections.abc import Sequence

import pytest

from scheduler.core.decisions import Admission
from scheduler.core.events import FinishReason
from tests.scheduler.core.cell import Cell, Key
from tests.scheduler.core.fake_worker import FakeSampling


def preempted(cell: Cell, keys: Sequence[Key]) -> list[int]:
    """Which of the sequences wait again."""
    waiting = {(s.request.router, s.sequence_id) for s in cell.scheduler._replicas["a"].queue}
    return [i for i, key in enumerate(keys) if key in waiting]


def step_until_preemption(cell: Cell) -> None:
    for _ in range(100):
        if cell.scheduler.state().num_preemptions:
            return
        cell.step()
    raise AssertionError("nobody was preempted")


def test_the_newest_yields_and_the_first_goes_on() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=6, block_size=4)
    keys = [cell.submit([i + 1] * 5, 11) for i in range(3)]
    step_until_preemption(cell)
    assert preempted(cell, keys) == [2]
    cell.run()
    cell.assert_at_rest()
    assert cell.end(keys[0]).num_preemptions == 0
    assert all(cell.end(key).reason is FinishReason.LENGTH for key in keys)


def test_only_sequences_after_it_yield_to_a_sequence() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=5, block_size=4)
    old, new = cell.submit([1], 8), cell.submit([2] * 14, 6)
    # The newer one needs its fifth block first. The older one would be cheaper, but stands before.
    step_until_preemption(cell)
    assert preempted(cell, [old, new]) == [1]
    cell.run()
    assert cell.end(old).num_preemptions == 0


def test_a_sequence_does_not_yield_itself_for_being_cheapest() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=5, block_size=4)
    old, new = cell.submit([1] * 5, 10), cell.submit([2] * 8, 9)
    step_until_preemption(cell)
    assert preempted(cell, [old, new]) == [1]
    cell.run()
    assert cell.end(old).num_preemptions == 0


def test_the_victim_is_the_one_with_least_work_to_repeat_for_what_is_needed() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=11, block_size=4, max_num_batched_tokens=64)
    first = cell.submit([1] * 15, 8)
    short = cell.submit([2] * 6, 8)
    long = cell.submit([3] * 16, 8)
    # One block is needed. The long one holds more tokens per block, and would free five.
    step_until_preemption(cell)
    assert preempted(cell, [first, short, long]) == [1]
    cell.run()
    cell.assert_at_rest()


def test_on_ties_the_newest_yields() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=7, block_size=4)
    first = cell.submit([1] * 11, 8)
    twins = [cell.submit([i] * 6, 8) for i in (2, 3)]
    step_until_preemption(cell)
    assert preempted(cell, [first, *twins]) == [2]


def test_a_prefill_waits_for_those_before_it() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=12, block_size=1, max_num_batched_tokens=4)
    old = cell.submit([1, 1], 10)
    cell.step()
    cell.step()
    new = cell.submit([2] * 8, 4)
    cell.run()
    assert cell.end(old).num_preemptions == 0
    assert cell.end(new).num_preemptions > 0


def test_a_prefill_takes_the_block_a_slot_after_it_got_in_the_same_plan() -> None:
    cell = Cell(watermark=0.0, policy="priority", aging_s=1.0)
    cell.attach(num_blocks=12, block_size=1, max_num_batched_tokens=4)
    ordinary = cell.submit([1, 1], 10)
    cell.step()
    cell.step()
    urgent = cell.submit([2] * 8, 4, priority=-1)
    cell.run()
    assert cell.end(urgent).num_preemptions == 0
    assert cell.end(ordinary).num_preemptions > 0


def test_a_victim_keeps_its_tokens_its_seed_and_its_place() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=5, block_size=4)
    first, victim = cell.submit([1] * 5, 9), cell.submit([2] * 5, 9, seed=7)
    step_until_preemption(cell)
    confirmed = cell.output(victim).copy()
    late = cell.submit([3], 4)
    admitted: list[Admission] = []
    while cell.unfinished():
        admitted += cell.step().admit
    requests = [a.sampling.key for a in admitted if isinstance(a.sampling, FakeSampling)]
    assert requests == [2, 3]
    assert (admitted[0].seed, admitted[0].num_prompt_tokens) == (7, 5)
    assert admitted[0].token_ids.tolist() == [2] * 5 + confirmed
    assert cell.end(victim).num_preemptions == 1
    assert (len(cell.output(first)), len(cell.output(late))) == (9, 4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tokens_in_flight_of_a_victim_are_dropped_and_sampled_again(depth: int) -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=6, block_size=4)
    keys = [cell.submit([i + 1] * 5, 12) for i in range(3)]
    cell.run(depth=depth)
    state = cell.scheduler.state()
    assert state.num_preemptions > 0
    assert (state.num_overrun_tokens > 0) == (depth > 1)
    assert [len(cell.output(key)) for key in keys] == [12] * 3
    cell.assert_at_rest()


def test_no_plan_is_made_while_the_blocks_of_a_victim_are_in_limbo() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=4, block_size=4)
    old, new = cell.submit([1] * 5, 10), cell.submit([2] * 7, 9)
    plan = cell.schedule()
    while plan is not None:
        plan = cell.schedule()
    state = cell.scheduler.state()
    assert (state.num_preemptions, state.num_blocks_limbo) == (1, 2)
    assert cell.schedule() is None
    assert cell.scheduler.state().num_preemptions == 1, "waiting costs no second victim"
    cell.run(depth=3)
    assert (len(cell.output(old)), len(cell.output(new))) == (10, 9)


def test_a_prefill_takes_blocks_from_those_after_it() -> None:
    cell = Cell(watermark=0.0, policy="priority", aging_s=1.0)
    cell.attach(num_blocks=8, block_size=4, max_num_batched_tokens=6)
    others = [cell.submit([i + 1] * 3, 12) for i in range(2)]
    cell.step()
    urgent = cell.submit([7] * 20, 4, priority=-1)
    cell.run()
    assert cell.end(urgent).num_preemptions == 0
    assert any(cell.end(key).num_preemptions for key in others)
    cell.assert_at_rest()


def test_a_prefill_waits_for_blocks_in_limbo_instead_of_a_second_victim() -> None:
    cell = Cell(watermark=0.0, policy="priority", aging_s=1.0)
    cell.attach(num_blocks=12, block_size=2, max_num_batched_tokens=6)
    for token in (1, 2):
        cell.submit([token] * 3, 9)
    cell.step()
    cell.step()
    urgent = cell.submit([7] * 12, 2, priority=-1)
    while not cell.scheduler.state().num_preemptions:
        cell.schedule()
    assert cell.scheduler.state().num_blocks_limbo > 0
    while cell.schedule() is not None:
        pass
    assert cell.scheduler.state().num_preemptions == 1
    cell.run(depth=3)
    assert len(cell.output(urgent)) == 2


def test_shared_blocks_do_not_count_as_gained() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=12, block_size=4, max_num_batched_tokens=64)
    first = cell.submit([1] * 17, 8)
    alone = cell.submit([2] * 9, 12)
    twins = cell.submit([3] * 9, 10, num_samples=2)
    step_until_preemption(cell)
    # A twin's own tail is cheaper than the whole of the sequence that shares nothing.
    assert preempted(cell, [first, alone]) == []
    cell.run()
    assert cell.end(twins, 1).num_preemptions > 0
    cell.assert_at_rest()
