"""Prompts that want their vector: no decode, the same budget, and no KV at all in an encoder."""

import numpy as np
import pytest

from scheduler.core.events import FinishReason, Refused, StepResult, WrongResult
from tests.scheduler.core.cell import Cell
from tests.scheduler.core.fake_worker import token_column


def test_a_vector_comes_with_the_step_that_ends_the_prompt_and_nothing_decodes() -> None:
    cell = Cell(max_num_batched_tokens=16)
    cell.attach()
    key = cell.submit([5] * 40, 0)
    for length in (16, 16, 8):
        assert cell.step().chunk_length.tolist() == [length]
    assert cell.end(key).reason is FinishReason.STOP
    assert cell.scheduler.state().num_vectors == 1
    assert cell.scheduler.state().num_generated_tokens == 0
    assert cell.schedule() is None
    cell.assert_at_rest()


def test_a_prompt_that_wants_its_vector_may_fill_the_model() -> None:
    cell = Cell()
    cell.attach(max_model_len=48)
    key = cell.submit([5] * 48, 0)
    cell.run()
    assert cell.end(key).reason is FinishReason.STOP


def test_it_shares_its_steps_with_sequences_that_decode() -> None:
    cell = Cell(max_num_batched_tokens=8)
    cell.attach()
    chatting = cell.submit([1, 2, 3], 8)
    cell.step()
    embedding = cell.submit([5] * 9, 0)
    plan = cell.step()
    assert (plan.num_tokens, plan.chunk_length.tolist()) == (8, [7])
    cell.run()
    assert cell.end(embedding).reason is FinishReason.STOP
    assert len(cell.output(chatting)) == 8


@pytest.mark.parametrize(("needs_every_position", "num_cached"), [(False, 12), (True, 0)])
def test_what_is_read_off_each_position_takes_nothing_from_the_cache(
    needs_every_position: bool, num_cached: int
) -> None:
    cell = Cell()
    cell.attach(block_size=4)
    first = cell.submit([5] * 14, 0)
    cell.run()
    again = cell.submit([5] * 14, 0, needs_every_position=needs_every_position)
    cell.run()
    assert cell.end(first).num_cached_tokens == 0
    assert cell.end(again).num_cached_tokens == num_cached


def test_an_encoder_computes_whole_prompts_as_many_as_fit_into_a_step() -> None:
    cell = Cell()
    cell.attach(num_blocks=0, max_num_batched_tokens=32)
    for length in (20, 9, 8, 24):
        cell.submit([5] * length, 0)
    assert [cell.step().chunk_length.tolist() for _ in range(2)] == [[20, 9], [8, 24]]
    cell.assert_at_rest()


def test_a_lost_encoder_embeds_again() -> None:
    cell = Cell()
    cell.attach(num_blocks=0)
    key = cell.submit([5] * 20, 0)
    cell.plan()
    cell.detach()
    assert cell.unfinished() == [key]
    cell.attach(num_blocks=0)
    cell.run()
    assert cell.end(key).reason is FinishReason.STOP
    assert cell.scheduler.state().num_replays == 1


def test_a_prompt_that_no_step_of_an_encoder_holds_is_refused_with_numbers() -> None:
    cell = Cell()
    cell.attach(num_blocks=0, max_num_batched_tokens=32)
    with pytest.raises(Refused, match="33 tokens; it is computed whole, and a step has at most 32"):
        cell.submit([5] * 33, 0)


def test_a_vector_that_is_not_finite_ends_its_request_alone() -> None:
    cell = Cell()
    cell.attach()
    broken = cell.submit([5] * 9, 0, broken_at=0)
    whole = cell.submit([6] * 9, 0)
    cell.run()
    assert cell.end(broken).reason is FinishReason.ERROR
    assert "not finite" in cell.end(broken).message
    assert cell.end(whole).reason is FinishReason.STOP


def test_a_vector_for_who_wants_tokens_and_tokens_for_who_wants_a_vector_are_no_results() -> None:
    none, nothing, one = token_column([]), np.empty(0, np.uint8), token_column([1])
    for max_tokens in (0, 5):
        cell = Cell()
        cell.attach()
        cell.submit([5] * 9, max_tokens)
        plan = cell.plan()
        finish = np.array([FinishReason.STOP], np.uint8)
        if max_tokens:
            columns = (none, none, none, nothing, plan.chunk_slot, one, finish)
        else:
            columns = (plan.chunk_slot, one, one, finish, none, none, nothing)
        with pytest.raises(WrongResult, match=r"(no|an unasked) token for slot 0"):
            cell.scheduler.apply("a", StepResult(plan.step_id, *columns), 1.0)
