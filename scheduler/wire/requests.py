"""What routers say: Submit to the core's Request, checked field by field."""

import numpy as np
from google.protobuf.message import DecodeError

from protos.grammar import MAX_GRAMMAR_BYTES
from protos.limits import (
    MAX_BAD_WORD_TOKENS,
    MAX_BIASED_TOKENS,
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_SAMPLES,
    MAX_STOP_TOKENS,
)
from protos.quire.v1 import sampling_pb2, scheduler_pb2
from scheduler.core.events import Int32Column, Refused, Request
from scheduler.messages import ModelCard, Pooling
from scheduler.wire.columns import (
    MAX_INT32,
    MAX_NAME_LENGTH,
    Malformed,
    all_below,
    checked_name,
)

_MAX_SEQUENCE_ID = 2**32 - 1
_MAX_DEADLINE_S = 1e9


def parse_connect(data: bytes) -> scheduler_pb2.ConnectRequest:
    """A router's message, with one of its kinds set. Raises Malformed."""
    try:
        message = scheduler_pb2.ConnectRequest.FromString(data)
    except DecodeError as error:
        raise Malformed("not a ConnectRequest") from error
    if message.WhichOneof("message") is None:
        raise Malformed("the ConnectRequest is empty")
    return message


def check_router_hello(hello: scheduler_pb2.RouterHello) -> str:
    """The router's id. Raises Malformed."""
    return checked_name("router_id", hello.router_id)


def decode_submit(submit: scheduler_pb2.Submit, *, router: int, model: ModelCard) -> Request:
    """The request in a Submit, fit for this model. Raises Refused."""
    _check_range("num_samples", submit.num_samples, 1, MAX_SAMPLES)
    last_id = submit.sequence_id + submit.num_samples - 1
    _check_range("sequence_id", last_id, 0, _MAX_SEQUENCE_ID)
    token_ids = _request_column("token_id", submit.token_id)
    if not token_ids.size:
        raise Refused("token_id is empty; it must hold at least 1 token", field="token_id")
    _check_ids("token_id", token_ids, model)
    _check_range("num_prompt_tokens", submit.num_prompt_tokens, 1, token_ids.size)
    _check_purpose(submit, model)
    _check_range("max_tokens", submit.max_tokens, 0, MAX_INT32)
    num_output_tokens = token_ids.size - submit.num_prompt_tokens
    if num_output_tokens > submit.max_tokens:
        message = f"{num_output_tokens} output tokens were given; max_tokens is {submit.max_tokens}"
        raise Refused(message, field="token_id")
    for field, text in (
        ("cache_salt", submit.cache_salt),
        ("request_id", submit.request_id),
        ("tenant", submit.tenant),
    ):
        if len(text) > MAX_NAME_LENGTH:
            message = f"{field} has {len(text)} characters; it may have at most {MAX_NAME_LENGTH}"
            raise Refused(message, field=field)
    if submit.adapter:
        message = f"adapter is {submit.adapter[:64]!r}; this cell serves only its base model"
        raise Refused(message, field="adapter")
    _check_sampling(submit.sampling, max_tokens=submit.max_tokens, model=model)
    score_from = _score_from(submit)
    # A copy: a part of a message keeps all of it alive, and the request may wait for long.
    sampling = sampling_pb2.SamplingParams()
    sampling.CopyFrom(submit.sampling)
    return Request(
        router=router,
        sequence_id=submit.sequence_id,
        token_ids=token_ids,
        num_prompt_tokens=submit.num_prompt_tokens,
        max_tokens=submit.max_tokens,
        seed=submit.seed,
        num_samples=submit.num_samples,
        priority=submit.priority,
        cache_salt=submit.cache_salt,
        adapter=submit.adapter,
        sampling=sampling,
        request_id=submit.request_id,
        probe=submit.probe,
        score_from=score_from,
        tenant=submit.tenant,
        deadline_s=_deadline_s(submit),
        resubmitted=submit.resubmitted,
        can_draft=_can_draft(sampling),
        needs_every_position=submit.max_tokens == 0 and model.pooling is Pooling.MEAN,
    )


def _can_draft(sampling: sampling_pb2.SamplingParams) -> bool:
    """Whether no rule or penalty makes what may come depend on the tokens just before it."""
    return not (
        sampling.grammar
        or sampling.allowed_token_id
        or sampling.bad_word_length
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def _deadline_s(submit: scheduler_pb2.Submit) -> float:
    _check_range("deadline_s", submit.deadline_s, 0, _MAX_DEADLINE_S)
    return submit.deadline_s


def _score_from(submit: scheduler_pb2.Submit) -> int | None:
    """The first prompt token to score; None if that is not asked for. Raises Refused."""
    if not submit.sampling.HasField("num_prompt_logprobs"):
        return None
    _check_range("num_prompt_logprobs", submit.sampling.num_prompt_logprobs, 0, MAX_LOGPROBS)
    _check_range("score_from", submit.score_from, 1, submit.num_prompt_tokens)
    if submit.max_tokens == 0:
        message = "num_prompt_logprobs is set; max_tokens must be at least 1 with it"
        raise Refused(message, field="num_prompt_logprobs")
    return submit.score_from


def _check_purpose(submit: scheduler_pb2.Submit, model: ModelCard) -> None:
    """Raises Refused if the model does not do what is asked: tokens, or a vector."""
    if submit.max_tokens > 0:
        if model.is_encoder:
            message = f"max_tokens is {submit.max_tokens}; this model only embeds, so it must be 0"
            raise Refused(message, field="max_tokens")
    elif model.pooling is None:
        message = "max_tokens is 0; it must be at least 1, since this model embeds nothing"
        raise Refused(message, field="max_tokens")
    elif submit.num_samples > 1:
        message = f"num_samples is {submit.num_samples}; a prompt has one vector"
        raise Refused(message, field="num_samples")


def _check_sampling(
    sampling: sampling_pb2.SamplingParams, *, max_tokens: int, model: ModelCard
) -> None:
    _check_range("temperature", sampling.temperature, 0, 2)
    _check_range("top_k", sampling.top_k, 0, MAX_INT32)
    _check_range("top_p", sampling.top_p, 0, 1, above=True)
    _check_range("min_p", sampling.min_p, 0, 1)
    penalty = sampling.repetition_penalty
    _check_range("repetition_penalty", penalty, 0, MAX_REPETITION_PENALTY, above=True)
    _check_range("presence_penalty", sampling.presence_penalty, -2, 2)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
    _check_range("min_tokens", sampling.min_tokens, 0, max_tokens)
    if sampling.HasField("num_logprobs"):
        _check_range("num_logprobs", sampling.num_logprobs, 0, MAX_LOGPROBS)
    if sampling.stop_token_ids:
        stops = np.array(sampling.stop_token_ids, np.uint32).view(np.int32)
        _check_ids("stop_token_ids", stops, model, most=MAX_STOP_TOKENS)
    _check_constraints(sampling, model)
    biased = _request_column("logit_bias_token_id", sampling.logit_bias_token_id)
    if len(sampling.logit_bias) != len(sampling.logit_bias_token_id):
        message = (
            f"logit_bias has {len(sampling.logit_bias)} bytes; "
            f"it must have as many as logit_bias_token_id ({len(sampling.logit_bias_token_id)})"
        )
        raise Refused(message, field="logit_bias")
    _check_ids("logit_bias_token_id", biased, model, most=MAX_BIASED_TOKENS)
    bias = np.frombuffer(sampling.logit_bias, "<f4")
    outside = np.flatnonzero(~(np.abs(bias) <= 100))
    if outside.size:
        _check_range("logit_bias", float(bias[outside[0]]), -100, 100)


def _check_constraints(sampling: sampling_pb2.SamplingParams, model: ModelCard) -> None:
    size = len(sampling.grammar.encode())
    _check_range("grammar", size, 0, MAX_GRAMMAR_BYTES)
    if size and not sampling.stop_token_ids:
        message = "stop_token_ids is empty; with a grammar it must have at least 1 token"
        raise Refused(message, field="stop_token_ids")
    allowed = _request_column("allowed_token_id", sampling.allowed_token_id)
    _check_ids("allowed_token_id", allowed, model, most=model.vocab_size)
    words = _request_column("bad_word_token_id", sampling.bad_word_token_id)
    _check_ids("bad_word_token_id", words, model, most=MAX_BAD_WORD_TOKENS)
    lengths = _request_column("bad_word_length", sampling.bad_word_length)
    if lengths.size and int(lengths.min()) < 1:
        _check_range("bad_word_length", int(lengths.min()), 1, words.size)
    if lengths.sum(dtype=np.int64) != words.size:
        message = (
            f"bad_word_token_id has {words.size} entries; "
            f"bad_word_length counts {lengths.sum(dtype=np.int64)}"
        )
        raise Refused(message, field="bad_word_length")


def _check_range(field: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Raises Refused unless value is within the limits; NaN never is."""
    if (low < value if above else low <= value) and value <= high:
        return
    bounds = f"above {low}" if above else f"at least {low}"
    shown = f"{value:g}" if isinstance(value, float) else value
    raise Refused(f"{field} is {shown}; it must be {bounds} and at most {high}", field=field)


def _check_ids(field: str, ids: Int32Column, model: ModelCard, *, most: int | None = None) -> None:
    """Raises Refused unless every id is in the vocabulary, and they are at most so many."""
    if most is not None and ids.size > most:
        message = f"{field} has {ids.size} entries; it may have at most {most}"
        raise Refused(message, field=field)
    if not all_below(ids, model.vocab_size):
        first = ids[np.flatnonzero(ids.view(np.uint32) >= model.vocab_size)[0]]
        message = (
            f"{field} contains {first}; ids of this model are at least 0 "
            f"and at most {model.vocab_size - 1}"
        )
        raise Refused(message, field=field)


def _request_column(field: str, data: bytes) -> Int32Column:
    if len(data) % 4:
        message = f"{field} has {len(data)} bytes; an int32 column has a multiple of 4"
        raise Refused(message, field=field)
    return np.frombuffer(data, "<i4")
