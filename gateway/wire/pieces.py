"""Pieces of output as the client sees them."""

from collections.abc import Sequence

import numpy as np

from gateway.output import (
    Finish,
    FinishReason,
    Piece,
    PromptLogprobs,
    TokenLogprob,
    shown_bytes,
)
from gateway.parsing.deltas import CallArguments, CallBegun, Content, Delta, Reasoning
from gateway.reading import Reading
from gateway.tokenizer import Tokenizer
from gateway.wire.requests import GenerateCall
from protos.quire.v1 import inference_pb2, sampling_pb2

_REASONS = {
    FinishReason.STOP: sampling_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: sampling_pb2.FINISH_REASON_ABORT,
    FinishReason.TIMEOUT: sampling_pb2.FINISH_REASON_TIMEOUT,
    FinishReason.ERROR: sampling_pb2.FINISH_REASON_ERROR,
}


class PieceWriter:
    """Writes the pieces of one call, in order; it reads its samples, where they are to be read."""

    def __init__(self, call: GenerateCall, tokenizer: Tokenizer) -> None:
        self._call = call
        self._bytes_of = shown_bytes(call.request, tokenizer)
        self._readings: dict[int, Reading] = {}
        self._begun = False
        """The first sample's first piece has been written."""

    def message(self, piece: Piece) -> inference_pb2.GenerateResponse:
        """The next one."""
        message = inference_pb2.GenerateResponse(index=piece.index)
        if not self._call.is_prompt_only:
            self._write_output(message, piece)
        if piece.index == 0 and not self._begun:
            self._begun = True
            self._write_prompt(message, piece)
        if piece.finish is not None:
            self._write_finish(message, piece.finish)
            if (reading := self._readings.get(piece.index)) is not None:
                message.usage.num_thought_tokens = reading.num_thought_tokens
        return message

    def _write_output(self, message: inference_pb2.GenerateResponse, piece: Piece) -> None:
        message.token_ids.extend(piece.token_ids)
        if piece.logprobs is not None:
            message.logprobs.CopyFrom(_logprob_columns(piece.logprobs))
        if self._call.parsing is None:
            message.text = piece.text
            return
        reading = self._readings.get(piece.index)
        if reading is None:
            reading = self._readings[piece.index] = Reading(self._call.parsing, self._bytes_of)
        _write_deltas(message, reading.feed(piece))

    def _write_prompt(self, message: inference_pb2.GenerateResponse, piece: Piece) -> None:
        if self._call.returns_prompt_token_ids:
            message.prompt_token_ids.extend(self._call.request.prompt_token_ids.tolist())
        if piece.prompt_logprobs is not None:
            message.prompt_logprobs.CopyFrom(_prompt_columns(piece.prompt_logprobs))

    def _write_finish(self, message: inference_pb2.GenerateResponse, finish: Finish) -> None:
        message.usage.num_prompt_tokens = finish.num_prompt_tokens
        message.usage.num_cached_tokens = finish.num_cached_tokens
        if self._call.is_prompt_only:
            message.finish_reason = sampling_pb2.FINISH_REASON_LENGTH
            return
        message.usage.num_output_tokens = finish.num_output_tokens
        message.finish_reason = _REASONS[finish.reason]
        match finish.stop_reason:
            case str(text):
                message.stop_text = text
            case int(token_id):
                message.stop_token_id = token_id


def _write_deltas(message: inference_pb2.GenerateResponse, deltas: Sequence[Delta]) -> None:
    for delta in deltas:
        match delta:
            case Content(text):
                message.text += text
            case Reasoning(text):
                message.reasoning += text
            case CallBegun(index, id, name):
                message.tool_calls.add(index=index, id=id, name=name)
            case CallArguments(index, text):
                if not message.tool_calls:
                    message.tool_calls.add(index=index)
                message.tool_calls[-1].arguments += text  # a call ends before the next begins


def _logprob_columns(rows: Sequence[TokenLogprob]) -> sampling_pb2.LogprobColumns:
    top = [pair for row in rows for pair in row.top]
    return sampling_pb2.LogprobColumns(
        row=np.arange(len(rows), dtype="<i4").tobytes(),
        logprob=np.array([row.logprob for row in rows], "<f4").tobytes(),
        rank=np.array([row.rank for row in rows], "<i4").tobytes(),
        num_top=np.array([len(row.top) for row in rows], "<i4").tobytes(),
        top_token_id=np.array([token for token, _ in top], "<i4").tobytes(),
        top_logprob=np.array([logprob for _, logprob in top], "<f4").tobytes(),
    )


def _prompt_columns(parts: Sequence[PromptLogprobs]) -> sampling_pb2.LogprobColumns:
    """They are consecutive and begin with the prompt's second token."""
    return sampling_pb2.LogprobColumns(
        logprob=b"".join(part.logprob.astype("<f4").tobytes() for part in parts),
        rank=b"".join(part.rank.astype("<i4").tobytes() for part in parts),
        num_top=b"".join(part.num_top.astype("<i4").tobytes() for part in parts),
        top_token_id=b"".join(part.top_token_id.astype("<i4").tobytes() for part in parts),
        top_logprob=b"".join(part.top_logprob.astype("<f4").tobytes() for part in parts),
    )
