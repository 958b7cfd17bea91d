"""Plans that no step's buffers hold end the worker before they are written past their ends."""

import pytest

from tests.worker.builders import admission, plan
from tests.worker.runners import NUM_SLOTS, make_device_runner, run
from worker.loader import LoadedModel
from worker.plans import Admission, PlanError


def prompts(count: int, num_tokens: int) -> list[Admission]:
    """In the first so many slots, with blocks that they share."""
    return [admission(slot, [7] * num_tokens, range(1, 13)) for slot in range(count)]


def test_no_more_tokens_than_a_step_holds(tiny_model: LoadedModel) -> None:
    runner = make_device_runner(tiny_model)
    chunks = [(0, 0, 86), (1, 0, 90), (2, 0, 81)]
    with pytest.raises(PlanError, match="a step has 257 tokens; this worker computes at most 256"):
        run(runner, plan(1, admit=prompts(3, 90), chunks=chunks))
    runner.reset()
    run(runner, plan(1, admit=prompts(3, 90), chunks=[(0, 0, 86), (1, 0, 90), (2, 0, 80)]))


def test_no_more_rows_than_there_are_slots(tiny_model: LoadedModel) -> None:
    runner = make_device_runner(tiny_model)
    chunks = [(slot, 0, 3) for slot in (*range(NUM_SLOTS), 4)]
    with pytest.raises(PlanError, match="chunk_slot names a slot twice"):
        run(runner, plan(1, admit=prompts(NUM_SLOTS, 3), chunks=chunks))


def test_no_bucket_that_is_too_small(tiny_model: LoadedModel) -> None:
    runner = make_device_runner(tiny_model, buckets=(2, 8))
    run(runner, plan(1, admit=prompts(3, 3), chunks=[(slot, 0, 3) for slot in range(3)]))
    with pytest.raises(PlanError, match="graph_bucket is 2; the plan decodes 3 slots"):
        run(runner, plan(2, decode=[0, 1, 2], graph_bucket=2))
