"""What is read from workers' bytes, and what is not."""

from typing import Any

import numpy as np
import pytest

from protos.quire.v1 import sampling_pb2, worker_pb2
from scheduler.core.events import FinishReason
from scheduler.messages import LogprobTable
from scheduler.wire import workers
from scheduler.wire.columns import Malformed
from tests.scheduler.peers import column


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def result(**fields: Any) -> worker_pb2.StepResult:
    columns: dict[str, Any] = {
        "slot": column(0, 1),
        "generation": column(1, 1),
        "token_id": column(5, 6),
        "finish": bytes(2),
    }
    return worker_pb2.StepResult(epoch=1, step_id=1, **columns | fields)


def decode(message: worker_pb2.StepResult) -> object:
    return workers.decode_result(message, num_slots=2, vocab_size=10)


def test_a_row_without_finite_logits_needs_no_token() -> None:
    broken = result(token_id=column(-1, 6), finish=bytes([FinishReason.ERROR, 0]))
    assert workers.decode_result(broken, num_slots=2, vocab_size=10).step.finish.tolist() == [4, 0]
    with pytest.raises(Malformed, match="token"):
        decode(result(token_id=column(-1, 6), finish=bytes(2)))


def test_a_slot_samples_once_per_step() -> None:
    with pytest.raises(Malformed, match="twice"):
        decode(result(slot=column(1, 1)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"row": column(0, 2)}, "not below 2"),
        ({"row": column(0, -1)}, "not below 2"),
        ({"row": column(0)}, "differ in length"),
        ({"logprob": b"abc"}, "3 bytes"),
        ({"num_top": column(1, -1)}, "more than 20"),
        ({"num_top": column(21, 0)}, "more than 20"),
        ({"num_top": column(1, 0)}, "add up"),
        ({"top_logprob": floats(1)}, "add up"),
    ],
)
def test_logprobs_that_do_not_fit_together_are_malformed(
    fields: dict[str, bytes], said: str
) -> None:
    good = {
        "row": column(0, 1),
        "logprob": floats(-1, -2),
        "rank": column(1, 1),
        "num_top": column(1, 1),
        "top_token_id": column(5, 6),
        "top_logprob": floats(-1, -2),
    }
    decode(result(logprobs=sampling_pb2.LogprobColumns(**good)))
    with pytest.raises(Malformed, match=said):
        decode(result(logprobs=sampling_pb2.LogprobColumns(**good | fields)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"slot": column(0)}, "differ in length"),
        ({"slot": column(0, 2)}, "not below 2"),
        ({"slot": column(1, 1)}, "twice"),
        ({"length": column(3, 0)}, "without a token"),
        ({"length": column(1, 1)}, "have 3 rows; their runs have 2 tokens"),
        ({"logprobs": sampling_pb2.LogprobColumns(logprob=floats(1, 2, 3))}, "differ in length"),
    ],
)
def test_scores_that_do_not_fit_together_are_malformed(fields: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {
        "slot": column(0, 1),
        "generation": column(1, 1),
        "start": column(4, 1),
        "length": column(1, 2),
        "logprobs": sampling_pb2.LogprobColumns(
            logprob=floats(-1, -2, -3), rank=column(1, 1, 1), num_top=column(0, 0, 0)
        ),
    }
    scores = workers.decode_result(
        result(scores=worker_pb2.ScoreColumns(**good)), num_slots=2, vocab_size=10
    ).scores
    assert scores is not None
    assert scores.of(np.array([1], np.int32)).logprobs.logprob.tolist() == [-2, -3]
    with pytest.raises(Malformed, match=said):
        decode(result(scores=worker_pb2.ScoreColumns(**good | fields)))


def test_the_part_of_a_logprob_table_that_speaks_of_some_rows() -> None:
    table = LogprobTable(
        row=np.array([1, 3, 4], np.int32),
        logprob=np.array([-1, -3, -4], np.float32),
        rank=np.array([1, 3, 4], np.int32),
        num_top=np.array([2, 0, 1], np.int32),
        top_token_id=np.array([10, 11, 40], np.int32),
        top_logprob=np.array([-1, -2, -4], np.float32),
    )
    part = table.of(np.array([4, 0, 1], np.int32))
    assert part is not None
    assert part.row.tolist() == [2, 0]
    assert part.logprob.tolist() == [-1, -4]
    assert part.num_top.tolist() == [2, 1]
    assert part.top_token_id.tolist() == [10, 11, 40]
    assert table.of(np.array([0, 2], np.int32)) is None
    assert table.of(np.array([], np.int32)) is None
    only = table.of(np.array([3], np.int32))
    assert only is not None
    assert (only.row.tolist(), only.num_top.tolist(), only.top_token_id.size) == ([0], [0], 0)
