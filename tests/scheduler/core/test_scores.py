"""Scoring a prompt: every token's score is told once, and the prefix cache swallows none."""

import numpy as np
import pytest

from scheduler.core.events import StepResult, WrongResult
from tests.scheduler.core.cell import Cell

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def test_a_cached_prompt_is_computed_again_where_its_tokens_are_to_be_scored() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit(PROMPT, 1)
    cell.run()
    key = cell.submit(PROMPT, 2, score_from=1)
    plan = cell.plan()
    assert (plan.admit[0].num_computed, plan.admit[0].score_from) == (0, 1)
    cell.deliver()
    assert cell.watched[key].score_from == len(PROMPT)
    cell.run()
    assert cell.end(key).num_cached_tokens == 0


def test_a_router_that_has_some_scores_is_told_the_others() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit(PROMPT, 1)
    cell.run()
    key = cell.submit(PROMPT, 1, score_from=6)
    plan = cell.plan()
    # Position 5 scores token 6, so one block may come from the cache, and not two.
    assert (plan.admit[0].num_computed, plan.admit[0].score_from) == (4, 6)
    cell.deliver()
    assert cell.watched[key].score_from == len(PROMPT)
    done = cell.submit(PROMPT, 1, output=[], score_from=len(PROMPT))
    plan = cell.plan()
    assert (plan.admit[0].num_computed, plan.admit[0].score_from) == (8, len(PROMPT))
    cell.deliver()
    assert cell.end(done).num_cached_tokens == 8


def test_one_sample_scores_and_its_siblings_share_what_it_computes() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit(PROMPT, 2, num_samples=3, score_from=1)
    plan = cell.plan()
    assert [admission.num_computed for admission in plan.admit] == [0, 8, 8]
    assert [admission.score_from for admission in plan.admit] == [1, 10, 10]
    cell.run()
    cell.assert_at_rest()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_lost_worker_costs_no_score_and_repeats_none(in_flight: int) -> None:
    cell = Cell()
    cell.attach(block_size=4, max_num_batched_tokens=4)
    key = cell.submit(PROMPT, 2, score_from=1)
    cell.step()
    for _ in range(in_flight):
        cell.plan()
    assert cell.watched[key].score_from == 5
    cell.detach()
    cell.attach(block_size=4, max_num_batched_tokens=32)
    assert cell.plan().admit[0].score_from == 5
    cell.run()
    cell.assert_at_rest()


def test_a_score_out_of_turn_is_refused() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit(PROMPT, 2, score_from=1)
    plan = cell.plan()
    one = np.ones(1, np.int32)
    result = StepResult(
        step_id=plan.step_id,
        slot=plan.chunk_slot,
        generation=one * plan.admit[0].generation,
        token_id=one,
        finish=np.zeros(1, np.uint8),
        score_slot=plan.chunk_slot,
        score_generation=one * plan.admit[0].generation,
        score_start=one * 3,
        score_length=one,
    )
    with pytest.raises(WrongResult, match="prompt tokens 3 to 3 were scored out of turn"):
        cell.scheduler.apply("a", result, 1.0)
