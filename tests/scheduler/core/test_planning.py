"""What goes into a step: one budget, decodes first, prompts in chunks, plans ahead of results."""

import pytest

from scheduler.core.decisions import Plan
from scheduler.core.events import FinishReason
from tests.scheduler.core.cell import Cell


def chunks(plan: Plan) -> list[tuple[int, int, int]]:
    columns = (plan.chunk_slot, plan.chunk_start, plan.chunk_length)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def decode_set(plan: Plan) -> list[int]:
    assert plan.decode is not None, "it stays as it was"
    return [int(slot) for slot in plan.decode]


def test_a_prompt_is_computed_in_chunks_of_the_budget() -> None:
    cell = Cell()
    cell.attach(max_num_batched_tokens=5)
    key = cell.submit(range(1, 13), 2)
    spans = [chunks(cell.step()) for _ in range(3)]
    assert spans == [[(0, 0, 5)], [(0, 5, 5)], [(0, 10, 2)]]
    assert len(cell.output(key)) == 1


def test_decode_outranks_prefill_when_the_budget_is_tight() -> None:
    cell = Cell()
    cell.attach(max_num_batched_tokens=4)
    first, second = cell.submit([1], 10), cell.submit([2], 10)
    cell.step()
    cell.submit(range(1, 10), 4)
    plan = cell.step()
    assert decode_set(plan) == [0, 1]
    assert chunks(plan) == [(2, 0, 2)]
    assert plan.num_tokens == 4
    assert len(cell.output(first)) == len(cell.output(second)) == 2


def test_a_running_prefill_outranks_admissions() -> None:
    cell = Cell()
    cell.attach(max_num_batched_tokens=6)
    cell.submit(range(1, 11), 2)
    cell.submit([7, 7, 7], 2)
    assert chunks(cell.step()) == [(0, 0, 6)]
    assert chunks(cell.step()) == [(0, 6, 4), (1, 0, 2)]


@pytest.mark.parametrize(
    ("config", "capacity", "budget", "expected"), [(3, 8, 32, 3), (8, 2, 32, 2), (8, 8, 4, 4)]
)
def test_running_sequences_are_capped_by_configuration_slots_and_tokens(
    config: int, capacity: int, budget: int, expected: int
) -> None:
    cell = Cell(max_num_seqs=config)
    cell.attach(max_num_seqs=capacity, max_num_batched_tokens=budget)
    for _ in range(8):
        cell.submit([1], 20)
    for _ in range(6):
        cell.step()
    assert cell.scheduler.state().num_running == expected


def test_the_decode_set_is_sent_only_when_it_changes() -> None:
    cell = Cell()
    cell.attach()
    cell.submit([1, 2], 6)
    assert decode_set(cell.step()) == []
    assert decode_set(cell.step()) == [0]
    assert cell.step().decode is None
    cell.submit([3], 1)
    assert cell.step().decode is None, "a sequence that ends by its first token never decodes"


def test_a_plan_without_chunks_names_the_smallest_captured_step_that_holds_its_rows() -> None:
    cell = Cell()
    cell.attach(max_num_seqs=8, graph_buckets=(1, 2, 4))
    for _ in range(2):
        cell.submit([1], 9)
    assert cell.step().graph_bucket == 0, "chunks are never padded"
    assert cell.step().graph_bucket == 2
    cell.submit([1], 9)
    cell.step()
    assert cell.step().graph_bucket == 4
    for _ in range(2):
        cell.submit([1], 9)
    cell.step()
    assert cell.step().graph_bucket == 0, "five rows are more than any captured step has"


def test_a_decoding_slot_gets_a_block_once_per_block_size() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit([1, 2, 3], 10)
    assert cell.step().append_index.tolist() == [0]
    appended = [cell.step().append_index.tolist() for _ in range(9)]
    assert appended == [[], [1], [], [], [], [2], [], [], []]


def test_plans_ahead_never_pass_the_limit() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1, 2, 3], 4)
    plans = [cell.schedule() for _ in range(5)]
    assert [plan is None for plan in plans] == [False] * 4 + [True]
    for _ in range(4):
        cell.deliver()
    assert cell.end(key).reason is FinishReason.LENGTH
    cell.assert_at_rest()


def test_admission_is_in_order_and_nobody_is_overtaken_for_being_large() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=6, block_size=4)
    cell.submit([1] * 14, 4)
    cell.step()
    large, small = cell.submit([2] * 12, 4), cell.submit([3], 4)
    for _ in range(2):
        cell.step()
    assert (cell.output(large), cell.output(small)) == ([], [])
    cell.run()
    cell.assert_at_rest()


def test_the_watermark_keeps_blocks_for_those_who_run() -> None:
    def running_after_one_step(watermark: float) -> int:
        cell = Cell(watermark=watermark)
        cell.attach(num_blocks=10, block_size=4)
        for i in range(5):
            cell.submit([i + 1] * 7, 2)
        cell.step()
        return cell.scheduler.state().num_running

    assert running_after_one_step(0.0) == 5
    assert running_after_one_step(0.3) == 3


def test_the_watermark_does_not_lock_out_a_sequence_that_needs_every_block() -> None:
    cell = Cell(watermark=0.5)
    cell.attach(num_blocks=4, block_size=4)
    key = cell.submit([1] * 13, 4)
    cell.run()
    assert cell.end(key).reason is FinishReason.LENGTH


def test_a_prompt_is_admitted_only_if_all_of_it_has_blocks() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=6, block_size=4, max_num_batched_tokens=6)
    cell.submit([9] * 5, 3)
    cell.step()
    long = cell.submit([1] * 17, 1)
    assert len(cell.step().chunk_slot) == 0, "its first chunk has blocks, the rest has not"
    cell.run()
    assert cell.end(long).num_preemptions == 0


def test_none_with_nothing_in_flight_means_nobody_waits() -> None:
    cell = Cell()
    cell.attach()
    assert cell.schedule() is None
    cell.submit([1], 1)
    assert cell.step() is not None
    assert cell.schedule() is None
    cell.assert_at_rest()


def test_wasted_places_are_counted() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit([1] * 6, 4)
    cell.schedule()
    assert cell.scheduler.state().num_wasted_token_slots == 2
    cell.schedule()
    assert cell.scheduler.state().num_wasted_token_slots == 1
