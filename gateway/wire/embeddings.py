"""Inputs to be embedded, and their vectors."""

from collections.abc import Sequence

from gateway.embedding import EmbeddingCall, EmbeddingOptions, embedding_call, shortened
from gateway.errors import invalid
from gateway.model import Model
from protos.quire.v1 import inference_pb2


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
            timeout=message.timeout_s if message.HasField("timeout_s") else None,
            timeout_field="timeout_s",
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
