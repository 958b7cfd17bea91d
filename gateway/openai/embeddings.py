"""POST /v1/embeddings: texts or tokens, one or several, and their vectors."""

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from gateway.embedding import (
    EmbeddingCall,
    EmbeddingOptions,
    Float32Column,
    embedding_call,
    shortened,
)
from gateway.errors import RequestError, invalid, quote
from gateway.model import Model
from gateway.openai.call import compact
from gateway.openai.schema import checked_text, parse_body, refuse_unserved
from gateway.request import check_request_id

_FORMATS = ("float", "base64")


class EmbeddingBody(BaseModel):
    """POST /v1/embeddings."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    input: Any = None
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    truncate_prompt_tokens: int | None = None


_REFUSED: Mapping[str, tuple[Any, ...]] = {
    # field: the values that ask for nothing
    "messages": (None, []),
    "add_special_tokens": (None, True),
    "normalize": (None,),
    "pooling": (None,),
    "softmax": (None,),
    "activation": (None,),
    "use_activation": (None,),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
    "instructions": (None, ""),
    "prompt_name": (None, ""),
}


def parse_embeddings(
    content: bytes, model: Model, max_model_len: int, embedding_dim: int, request_id: str
) -> tuple[EmbeddingCall, str]:
    """A valid call out of a request body, every input tokenized, and the format of its vectors.

    Raises RequestError.
    """
    body = parse_body(content, EmbeddingBody)
    model.check_name(body.model)
    refuse_unserved(body, _REFUSED)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    encoding = body.encoding_format or "float"
    if encoding not in _FORMATS:
        raise invalid(
            "encoding_format",
            f"encoding_format is {quote(encoding)}; it must be one of {quote(_FORMATS)}",
        )
    call = embedding_call(
        _inputs(body.input, model.limits.inputs),
        EmbeddingOptions(
            dimensions=body.dimensions,
            truncate_prompt_tokens=body.truncate_prompt_tokens,
            priority=body.priority,
            cache_salt=body.cache_salt,
        ),
        model,
        max_model_len=max_model_len,
        embedding_dim=embedding_dim,
        request_id=request_id,
        input_field="input",
    )
    return call, encoding


def embeddings_body(
    call: EmbeddingCall, encoding: str, vectors: Sequence[bytes], num_cached_tokens: int
) -> bytes:
    """The response: OpenAI's CreateEmbeddingResponse. Numbers are float32, written exactly."""
    write = _base64 if encoding == "base64" else _numbers
    # One vector at a time: other threads go on between two of them.
    data = ",".join(
        f'{{"object":"embedding","index":{index},'
        f'"embedding":{write(shortened(vector, call.dimensions))}}}'
        for index, vector in enumerate(vectors)
    )
    rest = {
        "id": f"embd-{call.request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": call.model,
        "usage": {
            "prompt_tokens": call.num_prompt_tokens,
            "total_tokens": call.num_prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
        },
    }
    return f'{compact(rest)[:-1]},"data":[{data}]}}'.encode()


def _numbers(vector: Float32Column) -> str:
    return compact(vector.tolist())


def _base64(vector: Float32Column) -> str:
    return compact(base64.b64encode(vector.tobytes()).decode())


def _inputs(value: Any, most: int) -> list[str | list[int]]:
    """A string, strings, tokens, or lists of tokens."""
    if isinstance(value, str):
        return [checked_text("input", value)]
    if isinstance(value, list) and value:
        if all(map(_is_token, value)):
            return [value]
        if len(value) > most:
            raise invalid("input", f"input has {len(value)} entries; it must have 1 to {most}")
        if all(isinstance(each, str) for each in value):
            return [checked_text("input", each) for each in value]
        if all(isinstance(each, list) and all(map(_is_token, each)) for each in value):
            return value
    raise _wrong_input(value)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_input(value: Any) -> RequestError:
    if value is None:
        return invalid("input", "input is missing")
    return invalid(
        "input",
        f"input is {quote(value)}; it must be a string, an array of strings, "
        "an array of tokens or an array of arrays of tokens",
    )
