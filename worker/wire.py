"""Protobuf ⇄ frozen dataclasses: the only file of the executor that knows the messages."""

import numpy as np
from google.protobuf.message import DecodeError

from protos.quire.v1 import sampling_pb2, worker_pb2
from worker.inventory import Held
from worker.plans import (
    Admission,
    BatchPlan,
    Drain,
    Hello,
    Int32Column,
    Logprobs,
    PlanError,
    Sampling,
    Scores,
    StepResult,
    Welcome,
)

PROTOCOL_VERSION = 1
_INT32 = np.dtype("<i4")
_NO_ENTRIES = np.frombuffer(b"", _INT32)
"""Most columns of most plans have none."""
_NOTHING = Held()

FAREWELL = worker_pb2.AttachRequest(farewell=worker_pb2.Farewell()).SerializeToString()
"""The AttachRequest of a worker that leaves of its own accord."""


def parse_response(frame: bytes) -> Welcome | BatchPlan | Drain:
    """What an AttachResponse says; raises `PlanError` when it says nothing known."""
    try:
        response = worker_pb2.AttachResponse.FromString(frame)
    except DecodeError as error:
        raise PlanError("the scheduler sent what is no AttachResponse") from error
    match response.WhichOneof("message"):
        case "plan":
            try:
                return _plan(response.plan)
            except ValueError as error:
                raise PlanError(f"step {response.plan.step_id} is malformed: {error}") from error
        case "welcome":
            welcome = response.welcome
            return Welcome(welcome.epoch, welcome.hash_seed, welcome.keeps_names)
        case "drain":
            return Drain()
        case _:
            raise PlanError("the scheduler sent a message that this worker does not know")


def encode_hello(hello: Hello, held: Held = _NOTHING) -> bytes:
    """The AttachRequest that opens a stream; `held` is what the blocks hold at that time."""
    return worker_pb2.AttachRequest(
        hello=worker_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=hello.worker_id,
            replica_id=hello.replica_id,
            rank=hello.rank,
            world_size=hello.world_size,
            model=worker_pb2.ModelCard(
                name=hello.model_name,
                revision=hello.model_revision,
                max_model_len=hello.max_model_len,
                vocab_size=hello.vocab_size,
                dtype=hello.dtype,
                pooling=worker_pb2.Pooling.Name(hello.pooling or 0),
                embedding_dim=hello.embedding_dim,
                is_encoder=hello.is_encoder,
            ),
            num_blocks=hello.num_blocks,
            block_size=hello.block_size,
            max_num_seqs=hello.max_num_seqs,
            max_num_batched_tokens=hello.max_num_batched_tokens,
            pid=hello.pid,
            device=hello.device,
            graph_bucket=hello.graph_buckets,
            hash_seed=held.hash_seed,
            named_block=held.block,
            block_name=held.name,
            max_draft_tokens=hello.max_draft_tokens,
        )
    ).SerializeToString()


def encode_result(result: StepResult) -> bytes:
    """The AttachRequest that answers one plan."""
    message = worker_pb2.StepResult(
        epoch=result.epoch,
        step_id=result.step_id,
        slot=result.slot.tobytes(),
        generation=result.generation.tobytes(),
        token_id=result.token_id.tobytes(),
        finish=result.finish.tobytes(),
        drafted=result.drafted.tobytes(),
        timing=worker_pb2.StepTiming(
            wait_us=result.timing.wait_us,
            prepare_us=result.timing.prepare_us,
            forward_us=result.timing.forward_us,
            sample_us=result.timing.sample_us,
        ),
    )
    if result.logprobs is not None:
        message.logprobs.CopyFrom(_logprob_columns(result.logprobs))
    if result.vectors is not None:
        message.vectors.slot = result.vectors.slot.tobytes()
        message.vectors.generation = result.vectors.generation.tobytes()
        message.vectors.finish = result.vectors.finish.tobytes()
        message.vectors.value = result.vectors.value.tobytes()
    if result.scores is not None:
        message.scores.CopyFrom(_score_columns(result.scores))
    return worker_pb2.AttachRequest(result=message).SerializeToString()


def encode_telemetry(num_steps: int, rss_bytes: int) -> bytes:
    """The AttachRequest that shows an idle executor alive."""
    return worker_pb2.AttachRequest(
        telemetry=worker_pb2.Telemetry(num_steps=num_steps, rss_bytes=rss_bytes)
    ).SerializeToString()


def _plan(plan: worker_pb2.BatchPlan) -> BatchPlan:
    for columns in (
        (plan.append_slot, plan.append_index, plan.append_block),
        (plan.chunk_slot, plan.chunk_start, plan.chunk_length),
        (plan.draft_slot, plan.draft_length),
    ):
        if len(set(map(len, columns))) > 1:
            raise ValueError("columns that belong together differ in length")
    return BatchPlan(
        epoch=plan.epoch,
        step_id=plan.step_id,
        retire=_int32(plan.retire_slot),
        admit=tuple(_admission(admission) for admission in plan.admit),
        append_slot=_int32(plan.append_slot),
        append_index=_int32(plan.append_index),
        append_block=_int32(plan.append_block),
        decode=_int32(plan.decode_slot) if plan.HasField("decode_slot") else None,
        chunk_slot=_int32(plan.chunk_slot),
        chunk_start=_int32(plan.chunk_start),
        chunk_length=_int32(plan.chunk_length),
        graph_bucket=plan.graph_bucket,
        named=_int32(plan.named_block),
        block_name=plan.block_name,
        unnamed=_int32(plan.unnamed_block),
        draft_slot=_int32(plan.draft_slot),
        draft_length=_int32(plan.draft_length),
        max_draft_tokens=plan.max_draft_tokens,
        min_draft_tokens=plan.min_draft_tokens,
    )


def _admission(admission: worker_pb2.Admission) -> Admission:
    return Admission(
        slot=admission.slot,
        generation=admission.generation,
        token_ids=_int32(admission.token_id),
        num_prompt_tokens=admission.num_prompt_tokens,
        max_total_tokens=admission.max_total_tokens,
        blocks=_int32(admission.block),
        num_computed=admission.num_computed,
        seed=admission.seed,
        sampling=_sampling(admission.sampling),
        score_from=admission.score_from,
    )


def _sampling(params: sampling_pb2.SamplingParams) -> Sampling:
    return Sampling(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        stop_token_ids=tuple(params.stop_token_ids),
        min_tokens=params.min_tokens,
        bias_token_ids=tuple(_int32(params.logit_bias_token_id).tolist()),
        bias=_bias(params),
        num_logprobs=params.num_logprobs if params.HasField("num_logprobs") else None,
        num_prompt_logprobs=(
            params.num_prompt_logprobs if params.HasField("num_prompt_logprobs") else None
        ),
        grammar=params.grammar,
        allowed_token_ids=tuple(_int32(params.allowed_token_id).tolist()),
        bad_words=_bad_words(params),
    )


def _bias(params: sampling_pb2.SamplingParams) -> tuple[float, ...]:
    if len(params.logit_bias) != len(params.logit_bias_token_id):
        raise ValueError("logit_bias does not match logit_bias_token_id")
    return tuple(np.frombuffer(params.logit_bias, "<f4").tolist())


def _bad_words(params: sampling_pb2.SamplingParams) -> tuple[tuple[int, ...], ...]:
    if not params.bad_word_length:
        return ()
    lengths = _int32(params.bad_word_length)
    if lengths.min() < 1 or lengths.sum() != len(params.bad_word_token_id) // 4:
        raise ValueError("bad_word_length does not add up to bad_word_token_id")
    ends = np.cumsum(lengths)
    return tuple(
        tuple(word.tolist()) for word in np.split(_int32(params.bad_word_token_id), ends[:-1])
    )


def _logprob_columns(logprobs: Logprobs) -> sampling_pb2.LogprobColumns:
    return sampling_pb2.LogprobColumns(
        row=logprobs.row.tobytes(),
        logprob=logprobs.logprob.tobytes(),
        rank=logprobs.rank.tobytes(),
        num_top=logprobs.num_top.tobytes(),
        top_token_id=logprobs.top_token_id.tobytes(),
        top_logprob=logprobs.top_logprob.tobytes(),
    )


def _score_columns(scores: Scores) -> worker_pb2.ScoreColumns:
    return worker_pb2.ScoreColumns(
        slot=scores.slot.tobytes(),
        generation=scores.generation.tobytes(),
        start=scores.start.tobytes(),
        length=scores.length.tobytes(),
        logprobs=_logprob_columns(scores.logprobs),
    )


def _int32(column: bytes) -> Int32Column:
    return np.frombuffer(column, _INT32) if column else _NO_ENTRIES
