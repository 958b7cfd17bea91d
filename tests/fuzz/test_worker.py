"""Whatever the scheduler's stream brings, a worker runs it or says that it contradicts itself."""

import contextlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protos.quire.v1 import sampling_pb2, worker_pb2
from tests.fuzz.messages import FUZZING, frames
from tests.worker.runners import NUM_BLOCKS, NUM_SLOTS
from worker import wire
from worker.plans import BatchPlan, PlanError
from worker.slot_counts import SlotCounts

MAX_MODEL_LEN = 96


def column(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def right_plan(step_id: int) -> worker_pb2.AttachResponse:
    """One that admits a sequence and computes all of its prompt."""
    admission = worker_pb2.Admission(
        slot=step_id % NUM_SLOTS,
        generation=1,
        token_id=column(1, 2, 3),
        num_prompt_tokens=3,
        max_total_tokens=9,
        block=column(1, 2),
        sampling=sampling_pb2.SamplingParams(
            grammar="start: /a/",
            bad_word_token_id=column(4, 5),
            bad_word_length=column(2),
            logit_bias_token_id=column(3),
            logit_bias=column(0),
        ),
    )
    return worker_pb2.AttachResponse(
        plan=worker_pb2.BatchPlan(
            epoch=1,
            step_id=step_id,
            admit=[admission],
            chunk_slot=column(step_id % NUM_SLOTS),
            chunk_start=column(0),
            chunk_length=column(3),
            decode_slot=column(),
        )
    )


WELCOME = worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=1))


@FUZZING
@given(st.lists(frames(worker_pb2.AttachResponse, right_plan(1), WELCOME), max_size=6))
def test_any_plan(said: list[bytes]) -> None:
    counts = SlotCounts(
        max_num_seqs=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, num_blocks=NUM_BLOCKS, block_size=8
    )
    with contextlib.suppress(PlanError):
        for frame in said:
            message = wire.parse_response(frame)
            if isinstance(message, BatchPlan):
                counts.apply(message)
                counts.advance_decodes()
                counts.advance_chunks(message)
