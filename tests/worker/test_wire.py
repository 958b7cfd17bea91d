"""Every field crosses the wire, and columns keep their order."""

from dataclasses import replace

import numpy as np
import pytest

from protos.quire.v1 import sampling_pb2, worker_pb2
from worker import wire
from worker.plans import (
    BatchPlan,
    Drain,
    FinishReason,
    Hello,
    Logprobs,
    PlanError,
    Sampling,
    Scores,
    StepResult,
    Timing,
    Welcome,
)


def packed(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def test_finish_reasons_are_the_contracts() -> None:
    for reason in FinishReason:
        assert reason == sampling_pb2.FinishReason.Value(f"FINISH_REASON_{reason.name}")


def test_a_plan_with_every_field() -> None:
    message = worker_pb2.AttachResponse(
        plan=worker_pb2.BatchPlan(
            epoch=1 << 40,
            step_id=7,
            retire_slot=packed(4, 2),
            admit=[
                worker_pb2.Admission(
                    slot=3,
                    generation=9,
                    token_id=packed(11, 12, 13),
                    num_prompt_tokens=2,
                    max_total_tokens=20,
                    block=packed(5, 6),
                    num_computed=2,
                    seed=(1 << 64) - 1,
                    sampling=sampling_pb2.SamplingParams(
                        temperature=0.5,
                        top_k=40,
                        top_p=0.75,
                        min_p=0.25,
                        repetition_penalty=1.5,
                        presence_penalty=-0.5,
                        frequency_penalty=0.25,
                        stop_token_ids=[2, 300],
                        min_tokens=4,
                        logit_bias_token_id=packed(8, 9),
                        logit_bias=np.array([1.5, -100], "<f4").tobytes(),
                        num_logprobs=0,
                        grammar="start: /a/",
                        allowed_token_id=packed(7, 8),
                        bad_word_token_id=packed(4, 5, 6),
                        bad_word_length=packed(1, 2),
                        num_prompt_logprobs=3,
                    ),
                    score_from=1,
                )
            ],
            append_slot=packed(3),
            append_index=packed(2),
            append_block=packed(17),
            decode_slot=packed(),
            chunk_slot=packed(3),
            chunk_start=packed(2),
            chunk_length=packed(1),
        )
    )
    plan = wire.parse_response(message.SerializeToString())
    assert isinstance(plan, BatchPlan)
    assert (plan.epoch, plan.step_id) == (1 << 40, 7)
    assert plan.retire.tolist() == [4, 2]
    assert (plan.append_slot.tolist(), plan.append_index.tolist()) == ([3], [2])
    assert plan.append_block.tolist() == [17]
    assert plan.decode is not None
    assert plan.decode.tolist() == []
    assert (plan.chunk_slot.tolist(), plan.chunk_start.tolist()) == ([3], [2])
    assert plan.chunk_length.tolist() == [1]
    (admission,) = plan.admit
    assert (admission.slot, admission.generation) == (3, 9)
    assert admission.token_ids.tolist() == [11, 12, 13]
    assert (admission.num_prompt_tokens, admission.max_total_tokens) == (2, 20)
    assert (admission.blocks.tolist(), admission.num_computed) == ([5, 6], 2)
    assert admission.seed == (1 << 64) - 1
    assert admission.sampling == Sampling(
        temperature=0.5,
        top_k=40,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        stop_token_ids=(2, 300),
        min_tokens=4,
        bias_token_ids=(8, 9),
        bias=(1.5, -100.0),
        num_logprobs=0,
        grammar="start: /a/",
        allowed_token_ids=(7, 8),
        bad_words=((4,), (5, 6)),
        num_prompt_logprobs=3,
    )
    assert admission.score_from == 1


def test_absence_differs_from_emptiness() -> None:
    message = worker_pb2.AttachResponse(
        plan=worker_pb2.BatchPlan(admit=[worker_pb2.Admission(slot=1)])
    )
    plan = wire.parse_response(message.SerializeToString())
    assert isinstance(plan, BatchPlan)
    assert plan.decode is None
    assert plan.admit[0].sampling.num_logprobs is None
    assert plan.admit[0].sampling.num_prompt_logprobs is None


def test_welcome_drain_and_what_is_not_known() -> None:
    welcome = worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=5))
    drain = worker_pb2.AttachResponse(drain=worker_pb2.Drain())
    assert wire.parse_response(welcome.SerializeToString()) == Welcome(5)
    assert wire.parse_response(drain.SerializeToString()) == Drain()
    with pytest.raises(PlanError, match="does not know"):
        wire.parse_response(b"")


def test_a_result_with_logprobs_and_scores() -> None:
    logprobs = Logprobs(
        row=np.array([1], np.int32),
        logprob=np.array([-0.5], np.float32),
        rank=np.array([2], np.int32),
        num_top=np.array([2], np.int32),
        top_token_id=np.array([9, 200], np.int32),
        top_logprob=np.array([-0.25, -0.5], np.float32),
    )
    result = StepResult(
        epoch=3,
        step_id=4,
        slot=np.array([1, 0], np.int32),
        generation=np.array([7, 8], np.int32),
        token_id=np.array([100, 200], np.int32),
        finish=np.array([0, 2], np.uint8),
        logprobs=logprobs,
        timing=Timing(wait_us=1, prepare_us=2, forward_us=3, sample_us=4),
        scores=Scores(
            slot=np.array([5], np.int32),
            generation=np.array([6], np.int32),
            start=np.array([7], np.int32),
            length=np.array([1], np.int32),
            logprobs=replace(logprobs, row=np.array([], np.int32)),
        ),
    )
    message = worker_pb2.AttachRequest.FromString(wire.encode_result(result)).result
    assert (message.epoch, message.step_id) == (3, 4)
    assert (message.slot, message.generation) == (packed(1, 0), packed(7, 8))
    assert (message.token_id, message.finish) == (packed(100, 200), b"\x00\x02")
    assert (message.logprobs.row, message.logprobs.rank) == (packed(1), packed(2))
    assert (message.logprobs.num_top, message.logprobs.top_token_id) == (packed(2), packed(9, 200))
    assert np.frombuffer(message.logprobs.logprob, "<f4").tolist() == [-0.5]
    assert np.frombuffer(message.logprobs.top_logprob, "<f4").tolist() == [-0.25, -0.5]
    scores = message.scores
    assert (scores.slot, scores.generation) == (packed(5), packed(6))
    assert (scores.start, scores.length) == (packed(7), packed(1))
    assert (scores.logprobs.row, scores.logprobs.rank) == (b"", packed(2))
    timing = message.timing
    assert (timing.wait_us, timing.prepare_us, timing.forward_us, timing.sample_us) == (1, 2, 3, 4)


def test_hello_and_telemetry() -> None:
    hello = Hello(
        worker_id="host-1",
        replica_id="r",
        rank=2,
        world_size=3,
        model_name="m",
        model_revision="abc",
        max_model_len=10,
        vocab_size=20,
        dtype="float32",
        num_blocks=30,
        block_size=16,
        max_num_seqs=4,
        max_num_batched_tokens=50,
        pid=60,
        device="cpu (2 threads)",
    )
    message = worker_pb2.AttachRequest.FromString(wire.encode_hello(hello)).hello
    assert (message.protocol_version, message.rank, message.world_size) == (1, 2, 3)
    assert (message.worker_id, message.replica_id) == ("host-1", "r")
    model = message.model
    assert (model.name, model.revision, model.dtype) == ("m", "abc", "float32")
    assert (model.max_model_len, model.vocab_size) == (10, 20)
    assert (message.num_blocks, message.block_size, message.max_num_seqs) == (30, 16, 4)
    assert (message.max_num_batched_tokens, message.pid) == (50, 60)
    assert message.device == "cpu (2 threads)"
    telemetry = worker_pb2.AttachRequest.FromString(wire.encode_telemetry(5, 6)).telemetry
    assert (telemetry.num_steps, telemetry.rss_bytes) == (5, 6)
