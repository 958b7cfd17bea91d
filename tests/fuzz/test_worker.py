"""Whatever the scheduler's stream brings, a worker runs it or says that it contradicts itself."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.quire.v1 import sampling_pb2, worker_pb2
from tests.fuzz.messages import FUZZING, frames
from tests.worker.builders import write_tiny_llama
from tests.worker.grammar_source import regex, write_tokenizer
from tests.worker.runners import NUM_BLOCKS, NUM_SLOTS, make_host_runner
from worker import wire
from worker.grammars import Grammars
from worker.host_runner import HostRunner
from worker.inventory import NAME_BYTES, Inventory
from worker.loader import load_model
from worker.plans import BatchPlan, PlanError, StepResult, Welcome
from worker.slot_counts import SlotCounts

MAX_MODEL_LEN = 96


def column(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def right_plan(step_id: int, grammar: str = "start: /a/") -> worker_pb2.AttachResponse:
    """One that admits a sequence, computes all of its prompt and names a block."""
    admission = worker_pb2.Admission(
        slot=step_id % NUM_SLOTS,
        generation=1,
        token_id=column(1, 2, 3),
        num_prompt_tokens=3,
        max_total_tokens=9,
        block=column(1, 2),
        sampling=sampling_pb2.SamplingParams(
            grammar=grammar,
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
            named_block=column(1),
            block_name=bytes(NAME_BYTES),
        )
    )


def next_plan(step_id: int) -> worker_pb2.AttachResponse:
    """The sequence of the plan before goes on, and gets a block."""
    slot = (step_id - 1) % NUM_SLOTS
    return worker_pb2.AttachResponse(
        plan=worker_pb2.BatchPlan(
            epoch=1,
            step_id=step_id,
            decode_slot=column(slot),
            append_slot=column(slot),
            append_index=column(2),
            append_block=column(3),
        )
    )


WELCOME = worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=1, hash_seed=b"secret"))


@FUZZING
@given(st.lists(frames(worker_pb2.AttachResponse, right_plan(1), WELCOME), max_size=6))
def test_any_plan(said: list[bytes]) -> None:
    counts = SlotCounts(
        max_num_seqs=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, num_blocks=NUM_BLOCKS, block_size=8
    )
    inventory = Inventory(NUM_BLOCKS)
    with contextlib.suppress(PlanError):
        for frame in said:
            message = wire.parse_response(frame)
            if isinstance(message, BatchPlan):
                inventory.note(message)
                counts.apply(message)
                counts.advance_decodes()
                counts.advance_chunks(message)
            elif isinstance(message, Welcome):
                inventory.open(message)
    held = inventory.held()
    assert len(held.name) // NAME_BYTES == len(held.block) // 4 <= NUM_BLOCKS


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> HostRunner:
    """A model of next to no size behind the real mirror, constraints and sampler."""
    directory: Path = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")
    loaded = load_model(directory, dtype="auto", device=torch.device("cpu"))
    tokenizer = write_tokenizer(directory / "tokenizer.json")
    return make_host_runner(loaded, grammars=Grammars(tokenizer, loaded.config.vocab_size))


PLANS = (right_plan(1, regex("[a-z]+")), next_plan(2), right_plan(3), next_plan(4))


@st.composite
def nearly_right(draw: st.DrawFn) -> list[bytes]:
    """These, of which one or two may be anything."""
    wrong = draw(st.sets(st.integers(0, len(PLANS) - 1), max_size=2))
    return [
        draw(frames(worker_pb2.AttachResponse, plan))
        if number in wrong
        else plan.SerializeToString()
        for number, plan in enumerate(PLANS)
    ]


@settings(FUZZING, max_examples=150)
@given(nearly_right())
def test_any_plan_is_run(runner: HostRunner, said: list[bytes]) -> None:
    """As the executor does: what contradicts itself ends it, anything else has a result."""
    runner.reset()
    results: list[StepResult] = []
    num_run = 0
    with contextlib.suppress(PlanError):
        for frame in said:
            message = wire.parse_response(frame)
            if isinstance(message, BatchPlan):
                runner.launch(message, 0, results.append)
                num_run += 1
                wire.encode_result(results[-1])
    assert len(results) == num_run
    assert runner.num_live <= NUM_SLOTS
