"""`InferenceService` messages to and from what people give and get."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protos.quire.v1 import inference_pb2, sampling_pb2
from quire.outputs import Chunk, Logprob, Usage
from quire.sampling import SamplingParams

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
    # a server whose machine is gone is noticed within twenty seconds
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

Prompt = str | Sequence[int]
"""Text, or token ids."""
Conversation = Sequence[Mapping[str, str]]
"""{"role": ..., "content": ...}, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a request says beside its prompt and its sampling."""

    model: str = ""
    """Empty: the only one that is served."""
    priority: int = 0
    """Lower is sooner."""
    cache_salt: str = ""
    """Cached prefixes are shared among requests of the same salt."""


def generate_request(
    prompt: Prompt | Conversation, params: SamplingParams, terms: Terms, *, whole: bool
) -> inference_pb2.GenerateRequest:
    """`whole`: each sample in one piece."""
    request = inference_pb2.GenerateRequest(
        model=terms.model,
        sampling=_sampling_options(params),
        priority=terms.priority,
        cache_salt=terms.cache_salt,
        whole=whole,
    )
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt and isinstance(prompt[0], Mapping):
        for message in prompt:
            assert isinstance(message, Mapping)
            request.chat.messages.add(role=message["role"], content=message["content"])
    else:
        request.tokens.ids.extend(int(token_id) for token_id in prompt)  # type: ignore[arg-type]
    return request


def embed_request(
    inputs: Sequence[Prompt], dimensions: int | None, terms: Terms
) -> inference_pb2.EmbedRequest:
    """Texts and lists of token ids may be mixed."""
    request = inference_pb2.EmbedRequest(
        model=terms.model,
        dimensions=dimensions,
        priority=terms.priority,
        cache_salt=terms.cache_salt,
    )
    for each in inputs:
        if isinstance(each, str):
            request.inputs.add(text=each)
        else:
            request.inputs.add(tokens=inference_pb2.TokenIds(ids=each))
    return request


def vectors_of(answer: inference_pb2.EmbedResponse) -> npt.NDArray[np.float32]:
    """`[inputs, dimensions]`, writable."""
    return np.stack([np.frombuffer(each.vector, "<f4") for each in answer.embeddings])


def chunk_of(piece: inference_pb2.GenerateResponse, params: SamplingParams) -> Chunk:
    """A piece, as people get it."""
    ended = piece.finish_reason != sampling_pb2.FINISH_REASON_UNSPECIFIED
    return Chunk(
        index=piece.index,
        text=piece.text,
        token_ids=list(piece.token_ids),
        logprobs=None if params.logprobs is None else _logprob_rows(piece),
        finish_reason=_finish_reason(piece.finish_reason) if ended else None,
        usage=_usage(piece.usage) if ended else None,
    )


def _finish_reason(reason: sampling_pb2.FinishReason) -> str:
    return sampling_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def _usage(usage: inference_pb2.Usage) -> Usage:
    return Usage(usage.num_prompt_tokens, usage.num_output_tokens, usage.num_cached_tokens)


def _sampling_options(params: SamplingParams) -> inference_pb2.SamplingOptions:
    return inference_pb2.SamplingOptions(
        n=params.n,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        num_logprobs=params.logprobs,
    )


def _logprob_rows(piece: inference_pb2.GenerateResponse) -> list[dict[int, Logprob]]:
    """One dict per token of the piece: alternatives, likeliest first, with the chosen token."""
    columns = piece.logprobs
    row, rank = np.frombuffer(columns.row, "<i4"), np.frombuffer(columns.rank, "<i4")
    logprob = np.frombuffer(columns.logprob, "<f4")
    ends = np.cumsum(np.frombuffer(columns.num_top, "<i4"))
    top_id = np.frombuffer(columns.top_token_id, "<i4")
    top_logprob = np.frombuffer(columns.top_logprob, "<f4")
    rows: list[dict[int, Logprob]] = []
    start = 0
    for i, end in enumerate(ends.tolist()):
        tops = enumerate(zip(top_id[start:end], top_logprob[start:end], strict=True), start=1)
        alternatives = {int(token): Logprob(float(value), place) for place, (token, value) in tops}
        chosen = int(piece.token_ids[int(row[i])])
        alternatives[chosen] = Logprob(float(logprob[i]), int(rank[i]))
        rows.append(alternatives)
        start = end
    return rows
