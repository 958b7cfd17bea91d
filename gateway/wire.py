"""`InferenceService` messages to requests, and pieces of output to messages."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gateway.conversation import ChatMessage, Conversation
from gateway.embedding import EmbeddingCall, EmbeddingOptions, embedding_call, shortened
from gateway.errors import invalid
from gateway.grammar import GrammarKind, GrammarSpec, checked_schema
from gateway.model import Model
from gateway.output import FinishReason, Piece, TokenLogprob
from gateway.request import GenerateRequest, Options
from protos.quire.v1 import inference_pb2, sampling_pb2

_ROLES = ("system", "user", "assistant")

_REASONS = {
    FinishReason.STOP: sampling_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: sampling_pb2.FINISH_REASON_ABORT,
    FinishReason.ERROR: sampling_pb2.FINISH_REASON_ERROR,
}

_GRAMMAR_KINDS: Mapping[int, GrammarKind] = {
    inference_pb2.GRAMMAR_KIND_JSON_SCHEMA: GrammarKind.JSON_SCHEMA,
    inference_pb2.GRAMMAR_KIND_REGEX: GrammarKind.REGEX,
    inference_pb2.GRAMMAR_KIND_LARK: GrammarKind.LARK,
}

_OPTIONAL = (
    *("n", "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "num_logprobs"),
)


def parse_generate(
    message: inference_pb2.GenerateRequest,
    model: Model,
    max_model_len: int,
    request_id: str,
    dice: random.Random,
) -> GenerateRequest:
    """A valid request, its prompt rendered and tokenized. Raises RequestError."""
    model.check_name(message.model)
    options = replace(
        _options(message.sampling),
        priority=message.priority,
        cache_salt=message.cache_salt,
    )
    tokens, field = _prompt(message, model, max_model_len)
    return model.build(
        tokens, options, max_model_len, dice=dice, request_id=request_id, prompt_field=field
    )


def piece_message(piece: Piece) -> inference_pb2.GenerateResponse:
    """One piece as the client sees it."""
    message = inference_pb2.GenerateResponse(
        index=piece.index, text=piece.text, token_ids=piece.token_ids
    )
    if piece.logprobs is not None:
        message.logprobs.CopyFrom(_logprob_columns(piece.logprobs))
    if piece.finish is not None:
        message.finish_reason = _REASONS[piece.finish.reason]
        message.usage.num_prompt_tokens = piece.finish.num_prompt_tokens
        message.usage.num_output_tokens = piece.finish.num_output_tokens
        message.usage.num_cached_tokens = piece.finish.num_cached_tokens
    return message


def parse_embed(
    message: inference_pb2.EmbedRequest,
    model: Model,
    max_model_len: int,
    embedding_dim: int,
    request_id: str,
) -> EmbeddingCall:
    """A valid call, its inputs tokenized. Raises RequestError."""
    model.check_name(message.model)
    return embedding_call(
        [_embed_input(index, entry) for index, entry in enumerate(message.inputs)],
        EmbeddingOptions(
            dimensions=message.dimensions if message.HasField("dimensions") else None,
            priority=message.priority,
            cache_salt=message.cache_salt,
        ),
        model,
        max_model_len=max_model_len,
        embedding_dim=embedding_dim,
        request_id=request_id,
        input_field="inputs",
    )


def embed_response(
    call: EmbeddingCall, vectors: Sequence[bytes], num_cached_tokens: Sequence[int]
) -> inference_pb2.EmbedResponse:
    """The vectors of a call's inputs, in order."""
    response = inference_pb2.EmbedResponse()
    for request, vector, num_cached in zip(call.requests, vectors, num_cached_tokens, strict=True):
        embedding = response.embeddings.add(vector=shortened(vector, call.dimensions).tobytes())
        embedding.usage.num_prompt_tokens = len(request.prompt_token_ids)
        embedding.usage.num_cached_tokens = num_cached
    return response


def _embed_input(index: int, entry: inference_pb2.EmbedInput) -> str | list[int]:
    match entry.WhichOneof("input"):
        case "text":
            return entry.text
        case "tokens":
            return list(entry.tokens.ids)
        case _:
            field = f"inputs[{index}]"
            raise invalid(field, f"{field} is empty; it must be one of text or tokens")


def _prompt(
    message: inference_pb2.GenerateRequest, model: Model, max_model_len: int
) -> tuple[list[int], str]:
    """The prompt's tokens, and the field it came in."""
    match message.WhichOneof("prompt"):
        case "text":
            return model.text_prompt(message.text, max_model_len), "text"
        case "tokens":
            return model.token_prompt(message.tokens.ids), "tokens"
        case "chat":
            conversation = Conversation(_messages(message.chat), messages_field="chat")
            return model.chat(conversation, max_model_len).token_ids, "chat"
        case _:
            raise invalid("prompt", "prompt is missing; it must be one of text, tokens or chat")


def _messages(chat: inference_pb2.ChatPrompt) -> list[ChatMessage]:
    if not chat.messages:
        raise invalid("chat", "chat.messages has 0 entries; it must have at least 1")
    for index, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            raise invalid(
                f"chat.messages[{index}].role",
                f"chat.messages[{index}].role is not known; it must be one of {list(_ROLES)}",
            )
    return [ChatMessage(message.role, message.content) for message in chat.messages]


def _options(sampling: inference_pb2.SamplingOptions) -> Options:
    said = {name: getattr(sampling, name) for name in _OPTIONAL if sampling.HasField(name)}
    return Options(
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        logit_bias=dict(sampling.logit_bias),
        logprobs_field="num_logprobs",
        grammar=_grammar(sampling),
        allowed_token_ids=tuple(sampling.allowed_token_ids) or None,
        bad_words=tuple(sampling.bad_words),
        **said,
    )


def _grammar(sampling: inference_pb2.SamplingOptions) -> GrammarSpec | None:
    if not sampling.HasField("grammar"):
        return None
    kind = _GRAMMAR_KINDS.get(sampling.grammar.kind)
    if kind is None:
        raise invalid(
            "grammar.kind",
            f"grammar.kind is {sampling.grammar.kind}; it must be one of {sorted(_GRAMMAR_KINDS)}",
        )
    if kind is GrammarKind.JSON_SCHEMA:
        return checked_schema(sampling.grammar.text, "grammar.text")
    return GrammarSpec(kind, sampling.grammar.text, "grammar.text")


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
