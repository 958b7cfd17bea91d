"""What `InferenceService` streams, as people get it."""

from collections.abc import Sequence

import numpy as np

from protos.quire.v1 import inference_pb2, sampling_pb2
from quire.outputs import Chunk, Logprob, ToolCallDelta, Usage
from quire.sampling import SamplingParams

Row = dict[int, Logprob]
"""By token id: the token that was chosen, and the alternatives."""


def chunk_of(piece: inference_pb2.GenerateResponse, params: SamplingParams) -> Chunk:
    """A piece, as people get it."""
    ended = piece.finish_reason != sampling_pb2.FINISH_REASON_UNSPECIFIED
    prompt_token_ids = list(piece.prompt_token_ids)
    return Chunk(
        index=piece.index,
        text=piece.text,
        token_ids=list(piece.token_ids),
        logprobs=None if params.logprobs is None else _rows(piece.logprobs, piece.token_ids),
        finish_reason=_finish_reason(piece.finish_reason) if ended else None,
        usage=_usage(piece.usage) if ended else None,
        stop_reason=_stop_reason(piece),
        reasoning=piece.reasoning,
        tool_calls=[
            ToolCallDelta(delta.index, delta.id, delta.name, delta.arguments)
            for delta in piece.tool_calls
        ],
        prompt_token_ids=prompt_token_ids or None,
        prompt_logprobs=(
            [None, *_rows(piece.prompt_logprobs, prompt_token_ids[1:])]
            if piece.HasField("prompt_logprobs")
            else None
        ),
    )


def _stop_reason(piece: inference_pb2.GenerateResponse) -> str | int | None:
    match piece.WhichOneof("stop_reason"):
        case "stop_text":
            return piece.stop_text
        case "stop_token_id":
            return piece.stop_token_id
        case _:
            return None


def _finish_reason(reason: sampling_pb2.FinishReason) -> str:
    return sampling_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def _usage(usage: inference_pb2.Usage) -> Usage:
    return Usage(
        usage.num_prompt_tokens,
        usage.num_output_tokens,
        usage.num_cached_tokens,
        usage.num_thought_tokens,
    )


def _rows(columns: sampling_pb2.LogprobColumns, token_ids: Sequence[int]) -> list[Row]:
    """Alternatives, likeliest first, with the chosen token. A column `row` that is empty means that
    every token has its row."""
    rank = np.frombuffer(columns.rank, "<i4")
    logprob = np.frombuffer(columns.logprob, "<f4")
    row = np.frombuffer(columns.row, "<i4") if columns.row else np.arange(len(logprob))
    ends = np.cumsum(np.frombuffer(columns.num_top, "<i4"))
    top_id = np.frombuffer(columns.top_token_id, "<i4")
    top_logprob = np.frombuffer(columns.top_logprob, "<f4")
    rows: list[Row] = []
    start = 0
    for i, end in enumerate(ends.tolist()):
        tops = enumerate(zip(top_id[start:end], top_logprob[start:end], strict=True), start=1)
        alternatives = {int(token): Logprob(float(value), place) for place, (token, value) in tops}
        chosen = int(token_ids[int(row[i])])
        alternatives[chosen] = Logprob(float(logprob[i]), int(rank[i]))
        rows.append(alternatives)
        start = end
    return rows
