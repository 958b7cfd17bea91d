"""Results: what counts, what is over-run, and how a sequence ends."""

import numpy as np
import pytest

from scheduler.core.events import FinishReason, StepResult, WrongResult
from tests.scheduler.core.cell import Cell
from tests.scheduler.core.fake_worker import EOS, token_column


def test_a_stop_token_ends_the_sequence_and_is_part_of_it() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1, 2], 40, eos_period=2)
    cell.run(depth=3)
    finished = cell.end(key)
    assert finished.reason is FinishReason.STOP
    assert cell.output(key)[-1] == EOS
    assert finished.num_output_tokens == len(cell.output(key)) < 40
    cell.assert_at_rest()


def test_a_slot_that_ended_on_the_device_leaves_plans_in_flight_without_a_trace() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1, 2], 40, eos_period=1)
    plans = [cell.plan() for _ in range(3)]
    cell.deliver()
    assert cell.end(key).num_output_tokens == 1
    cell.deliver()
    cell.deliver()
    assert plans[2].num_tokens == 1
    assert cell.scheduler.state().num_overrun_tokens == 0
    cell.assert_at_rest()


def test_tokens_of_an_aborted_sequence_are_over_run() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1, 2], 40)
    for _ in range(3):
        cell.schedule()
    cell.deliver()
    [finished] = cell.abort(key)
    assert (finished.reason, finished.num_output_tokens) == (FinishReason.ABORT, 1)
    cell.deliver()
    cell.deliver()
    assert len(cell.output(key)) == 1
    assert cell.scheduler.state().num_overrun_tokens == 2
    cell.assert_at_rest()


def test_a_new_tenant_never_receives_tokens_of_the_one_before() -> None:
    cell = Cell()
    cell.attach(max_num_seqs=1)
    key = cell.submit([1, 2], 40)
    cell.schedule()
    cell.abort(key)
    heir = cell.submit([3, 4], 2)
    assert cell.schedule() is None, "the slot is in limbo"
    cell.deliver()
    plan = cell.plan()
    assert (plan.retire.tolist(), plan.admit[0].slot, plan.admit[0].generation) == ([0], 0, 2)
    cell.run()
    assert len(cell.output(heir)) == 2


def test_blocks_wait_in_limbo_for_the_newest_plan_sent() -> None:
    cell = Cell(enable_prefix_caching=False)
    cell.attach(block_size=4)
    key, other = cell.submit([1] * 8, 20), cell.submit([2], 20)
    cell.schedule()
    cell.schedule()
    cell.abort(key)
    limbo = []
    for _ in range(2):
        limbo.append(cell.scheduler.state().num_blocks_limbo)
        cell.deliver()
    assert [*limbo, cell.scheduler.state().num_blocks_limbo] == [3, 3, 0]
    cell.abort(other)
    state = cell.scheduler.state()
    assert (state.num_blocks_limbo, state.num_blocks_free) == (0, state.num_blocks_total)


def test_blocks_that_others_share_are_not_in_limbo() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    key = cell.submit([1] * 10, 20, num_samples=2)
    cell.schedule()
    cell.abort(key)
    state = cell.scheduler.state()
    assert (state.num_blocks_used, state.num_blocks_limbo) == (4, 1)


def test_a_retirement_rides_on_the_next_plan_that_has_rows() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1], 20)
    cell.step()
    cell.abort(key)
    assert cell.schedule() is None
    cell.submit([2], 20)
    plan = cell.step()
    assert plan.retire.tolist() == [0]
    assert plan.admit[0].slot == 0
    assert cell.step().retire.tolist() == []


def test_logits_that_are_not_finite_end_the_sequence_alone() -> None:
    cell = Cell()
    cell.attach()
    broken, sound = cell.submit([1, 2], 8, broken_at=4), cell.submit([3], 8)
    cell.run(depth=2)
    finished = cell.end(broken)
    assert (finished.reason, finished.num_output_tokens) == (FinishReason.ERROR, 2)
    assert finished.message
    assert finished.num_preemptions == 1, "it is computed once more first"
    assert len(cell.output(sound)) == 8
    cell.assert_at_rest()


@pytest.mark.parametrize("num_samples", [1, 2])
def test_logits_that_are_not_finite_leave_nothing_to_reuse(num_samples: int) -> None:
    cell = Cell()
    cell.attach(block_size=4)
    prompt = [1] * 9
    broken = cell.submit(prompt, 8, broken_at=11, num_samples=num_samples)
    cell.run(depth=3)
    for sample in range(num_samples):
        assert cell.end(broken, sample).reason is FinishReason.ERROR
    assert cell.scheduler.state().num_blocks_cached == 0
    again = cell.submit(prompt, 1)
    cell.run()
    assert cell.end(again).num_cached_tokens == 0
    cell.assert_at_rest()


@pytest.mark.parametrize("max_tokens", [8, 0])
def test_what_is_not_finite_is_computed_again_on_another_replica(max_tokens: int) -> None:
    cell = Cell()
    cell.attach("a", block_size=4)
    cell.attach("b", block_size=4)
    cell.links["b"].worker.is_faulty = False
    key = cell.submit([1] * 9, max_tokens, broken_at=11)
    cell.run(depth=2)
    assert cell.end(key).reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert cell.end(key).num_preemptions == 1
    state = cell.scheduler.state()
    assert [replica.num_distrusted for replica in state.replicas] == [1, 0]
    assert state.replicas[0].num_blocks_cached == 0
    cell.assert_at_rest()


def test_what_is_not_finite_is_computed_again_on_the_only_replica_from_the_start() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    key = cell.submit([1] * 9, 8, broken_at=11)
    plan = cell.step()
    while not cell.scheduler.state().num_distrusted:
        cell.step()
    cell.links["a"].worker.is_faulty = False
    plan = cell.step()
    assert plan.admit[0].num_computed == 0, "what it had in the cache is not used again"
    cell.run()
    assert cell.end(key).reason is FinishReason.LENGTH


def test_the_limit_holds_even_if_the_worker_does_not_report_it() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1, 2], 1)
    plan = cell.plan()
    result = cell.links["a"].worker.execute(plan)
    silent = StepResult(
        result.step_id, result.slot, result.generation, result.token_id, result.finish * 0
    )
    [finished] = cell._hear(cell.scheduler.apply("a", silent, 1.0))
    assert finished.reason is FinishReason.LENGTH
    assert len(cell.output(key)) == 1


def test_news_are_columns_with_the_routers_own_ids() -> None:
    cell = Cell()
    cell.attach()
    keys = [cell.submit([1, 2], 4, router=5), cell.submit([3], 4, router=6)]
    assert all(sequence_id > 2**31 for _, sequence_id in keys)
    plan = cell.plan()
    outputs = cell.scheduler.apply("a", cell.links["a"].worker.execute(plan), 1.0)
    assert outputs.router.tolist() == [5, 6]
    assert outputs.sequence_id.dtype == np.int32
    assert outputs.sequence_id.view(np.uint32).tolist() == [keys[0][1], keys[1][1]]
    assert outputs.result_row.tolist() == [0, 1]
    assert len(outputs.token_id) == 2


@pytest.mark.parametrize("step_id", [1, 3])
def test_a_result_out_of_order_is_an_error_and_changes_nothing(step_id: int) -> None:
    cell = Cell()
    cell.attach()
    cell.submit([1], 8)
    cell.step()
    cell.schedule()
    empty = token_column([])
    stray = StepResult(step_id, empty, empty, empty, np.empty(0, np.uint8))
    with pytest.raises(WrongResult, match=f"step {step_id} .* expected step 2"):
        cell.scheduler.apply("a", stray, 1.0)
    cell.run()
    cell.assert_at_rest()


@pytest.mark.parametrize("generation", [-1, 0, 1, 2])
def test_a_vacant_slot_has_no_news_whatever_the_generation(generation: int) -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1], 8)
    plan = cell.plan()
    slot = plan.admit[0].slot
    cell.abort(key)
    one = token_column([1])
    stray = StepResult(
        plan.step_id, token_column([slot]), token_column([generation]), one, np.zeros(1, np.uint8)
    )
    outputs = cell.scheduler.apply("a", stray, 1.0)
    assert outputs.token_id.size == 0
    cell.scheduler.check_integrity()


@pytest.mark.parametrize("slot", [-1, 8])
def test_a_slot_that_does_not_exist_is_an_error(slot: int) -> None:
    cell = Cell()
    cell.attach(max_num_seqs=8)
    cell.submit([1], 8)
    plan = cell.plan()
    one = token_column([1])
    stray = StepResult(plan.step_id, token_column([slot]), one, one, np.zeros(1, np.uint8))
    with pytest.raises(WrongResult, match="not in 0 to 7"):
        cell.scheduler.apply("a", stray, 1.0)


def test_an_end_tells_where_the_time_went() -> None:
    cell = Cell()
    key = cell.submit([1, 2], 3)
    cell.now = 10.0
    cell.attach()
    cell.now = 20.0
    cell.schedule()
    cell.now = 50.0
    cell.deliver()
    cell.now = 90.0
    cell.run()
    finished = cell.end(key)
    assert finished.queue_s == pytest.approx(20, abs=0.1)
    assert finished.prefill_s == pytest.approx(30, abs=0.1)
    assert finished.decode_s == pytest.approx(40, abs=0.1)


def test_nothing_is_kept_of_what_has_ended() -> None:
    cell = Cell()
    cell.attach(num_blocks=16)
    for i in range(60):
        key = cell.submit([i % 7, i % 5, i % 3, 1, 2], 6, num_samples=1 + i % 2, eos_period=9)
        cell.run(depth=2)
        cell.abort(key)
    core = cell.scheduler
    replica = core._replicas["a"]
    assert len(core._sequences) == 0
    assert (list(replica.in_flight.limbo), replica.prefilling, len(replica.in_flight)) == (
        [],
        {},
        0,
    )
    assert len(replica.pool._index) <= 16
    assert replica.calendar._departing == {}


def test_a_result_that_leaves_out_a_sequence_is_refused() -> None:
    """It would wait for ever for its token."""
    cell = Cell()
    cell.attach()
    cell.submit([1, 2], 40)
    cell.submit([3, 4], 40)
    plan = cell.plan()
    slot, one, finish = plan.chunk_slot[:1], token_column([1]), np.zeros(1, np.uint8)
    with pytest.raises(WrongResult, match=f"no token for slot {plan.chunk_slot[1]}"):
        cell.scheduler.apply("a", StepResult(plan.step_id, slot, one, one, finish), 1.0)
