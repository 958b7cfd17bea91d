"""`SchedulerService` messages to and from the data in `router.messages`."""

from collections.abc import Iterator, Mapping

import numpy as np

from gateway.output import FinishReason, PromptLogprobs, TokenLogprob
from protos.quire.v1 import sampling_pb2, scheduler_pb2
from router.messages import (
    CellStatus,
    Finished,
    Refusal,
    ReplicaStatus,
    ServedModel,
    Submission,
)

PROTOCOL_VERSION = 1
_UINT64 = (1 << 64) - 1
_REASONS: Mapping[int, FinishReason] = {
    sampling_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    sampling_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    sampling_pb2.FINISH_REASON_ABORT: FinishReason.ABORT,
    sampling_pb2.FINISH_REASON_TIMEOUT: FinishReason.TIMEOUT,
}


def hello_message(router_id: str) -> scheduler_pb2.ConnectRequest:
    """The first message of a stream."""
    return scheduler_pb2.ConnectRequest(
        hello=scheduler_pb2.RouterHello(protocol_version=PROTOCOL_VERSION, router_id=router_id)
    )


def leaving_message() -> scheduler_pb2.ConnectRequest:
    """This router is about to end."""
    return scheduler_pb2.ConnectRequest(leaving=scheduler_pb2.RouterLeaving())


def submit_message(submission: Submission) -> scheduler_pb2.ConnectRequest:
    """A request, or one sample of it submitted anew with the tokens so far."""
    request = submission.request
    sampling = request.sampling
    tokens = request.prompt_token_ids.astype("<i4").tobytes()
    if submission.output_token_ids:
        tokens += np.array(submission.output_token_ids, "<i4").tobytes()
    params = sampling_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop_token_ids=sorted(request.eos_token_ids | request.stop_token_ids),
        min_tokens=sampling.min_tokens,
        num_logprobs=sampling.num_logprobs,
        num_prompt_logprobs=sampling.num_prompt_logprobs,
        grammar=sampling.grammar,
        allowed_token_id=np.array(sampling.allowed_token_ids, "<i4").tobytes(),
    )
    if sampling.logit_bias:
        biased, bias = zip(*sampling.logit_bias, strict=True)
        params.logit_bias_token_id = np.array(biased, "<i4").tobytes()
        params.logit_bias = np.array(bias, "<f4").tobytes()
    if sampling.bad_words:
        lengths = [len(word) for word in sampling.bad_words]
        params.bad_word_length = np.array(lengths, "<i4").tobytes()
        params.bad_word_token_id = np.concatenate(sampling.bad_words).astype("<i4").tobytes()
    return scheduler_pb2.ConnectRequest(
        submit=scheduler_pb2.Submit(
            sequence_id=submission.sequence_id,
            num_samples=submission.num_samples,
            token_id=tokens,
            num_prompt_tokens=len(request.prompt_token_ids),
            max_tokens=request.max_tokens,
            seed=(request.seed + submission.first_sample) & _UINT64,
            sampling=params,
            priority=request.priority,
            cache_salt=request.cache_salt,
            request_id=request.request_id,
            probe=submission.probe,
            score_from=0 if sampling.num_prompt_logprobs is None else submission.score_from,
            tenant=submission.tenant,
            deadline_s=submission.timeout_s,
            resubmitted=submission.resubmitted,
        )
    )


def frame_columns(frame: scheduler_pb2.Frame) -> tuple[list[int], list[int]]:
    """Sequence ids and token ids, sharing an index."""
    return (
        np.frombuffer(frame.sequence_id, "<u4").tolist(),
        np.frombuffer(frame.token_id, "<i4").tolist(),
    )


def frame_logprobs(frame: scheduler_pb2.Frame, token_ids: list[int]) -> Mapping[int, TokenLogprob]:
    """Logprobs by index of the frame's token column; most frames have none."""
    columns = frame.logprobs
    if not columns.row:
        return {}
    rows = np.frombuffer(columns.row, "<i4").tolist()
    ends = np.cumsum(np.frombuffer(columns.num_top, "<i4")).tolist()
    top = list(
        zip(
            np.frombuffer(columns.top_token_id, "<i4").tolist(),
            np.frombuffer(columns.top_logprob, "<f4").tolist(),
            strict=True,
        )
    )
    return {
        row: TokenLogprob(token_ids[row], logprob, rank, tuple(top[start:end]))
        for row, logprob, rank, start, end in zip(
            rows,
            np.frombuffer(columns.logprob, "<f4").tolist(),
            np.frombuffer(columns.rank, "<i4").tolist(),
            [0, *ends[:-1]],
            ends,
            strict=True,
        )
    }


def frame_scores(frame: scheduler_pb2.Frame) -> Iterator[tuple[int, PromptLogprobs]]:
    """Sequences, each with logprobs of consecutive tokens of its prompt; few frames have any."""
    scores, columns = frame.scores, frame.scores.logprobs
    if not scores.sequence_id:
        return
    lengths = np.frombuffer(scores.length, "<i4")
    num_top = np.frombuffer(columns.num_top, "<i4")
    ends = np.cumsum(lengths)
    top_ends = np.concatenate(([0], np.cumsum(num_top)))
    for sequence_id, start, end, length in zip(
        np.frombuffer(scores.sequence_id, "<u4").tolist(),
        np.frombuffer(scores.start, "<i4").tolist(),
        ends.tolist(),
        lengths.tolist(),
        strict=True,
    ):
        rows = slice(end - length, end)
        tops = slice(top_ends[end - length], top_ends[end])
        yield (
            sequence_id,
            PromptLogprobs(
                start=start,
                logprob=np.frombuffer(columns.logprob, "<f4")[rows],
                rank=np.frombuffer(columns.rank, "<i4")[rows],
                num_top=num_top[rows],
                top_token_id=np.frombuffer(columns.top_token_id, "<i4")[tops],
                top_logprob=np.frombuffer(columns.top_logprob, "<f4")[tops],
            ),
        )


def sequence_finished(message: scheduler_pb2.Finished) -> Finished:
    """The end of a sequence; a reason that this version does not know is an error."""
    reason = _REASONS.get(message.reason, FinishReason.ERROR)
    return Finished(reason, message.num_cached_tokens, message.message, message.vector)


def refusal_of(message: scheduler_pb2.Refusal) -> Refusal:
    """Why a Submit was not accepted."""
    retry = message.code == scheduler_pb2.REFUSAL_CODE_OVERLOADED
    return Refusal(message.message, message.field, retry, message.retry_after_s)


def cell_status(message: scheduler_pb2.CellStatus, received_at: float) -> CellStatus:
    """What the cell is like now."""
    model = None
    if message.HasField("model"):
        card = message.model
        model = ServedModel(
            card.name, card.vocab_size, card.max_model_len, card.embedding_dim, card.is_encoder
        )
    return CellStatus(
        received_at=received_at,
        model=model,
        replicas=tuple(map(_replica_status, message.replicas)),
        draining=message.draining,
    )


def _replica_status(message: scheduler_pb2.ReplicaStatus) -> ReplicaStatus:
    return ReplicaStatus(
        replica_id=message.replica_id,
        epoch=message.epoch,
        kv_tokens=message.num_blocks_total * message.block_size,
        last_seen_s=message.last_seen_s,
        step_age_s=message.step_age_s if message.HasField("step_age_s") else None,
        step_patience_s=message.step_patience_s,
        num_generated_tokens=message.num_generated_tokens,
        num_vectors=message.num_vectors,
        num_steps=message.num_steps,
    )
