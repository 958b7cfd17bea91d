"""POST /v1/embeddings: texts or tokens, one or several, and their vectors."""

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, WithJsonSchema

from gateway.body import Body, parse_body
from gateway.embedding import (
    EmbeddingCall,
    EmbeddingOptions,
    Float32Column,
    embedding_call,
    shortened,
)
from gateway.errors import invalid
from gateway.model import Model
from gateway.openai import shapes
from gateway.openai.call import compact
from gateway.openai.inputs import Input, texts_or_tokens
from gateway.request import check_request_id


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    model_config = ConfigDict(title="EmbeddingRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = {
        "messages": ([],),
        "add_special_tokens": (True,),
        "normalize": (),
        "pooling": (),
        "softmax": (),
        "activation": (),
        "use_activation": (),
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
        "instructions": ("",),
        "prompt_name": ("",),
        "truncation_side": ("left",),
    }

    model: str | None = None
    """The served model; if it is not said, the one there is."""
    input: Annotated[Any, WithJsonSchema(shapes.TEXTS_OR_TOKENS)]
    """What to embed: a text or its tokens, or several of either; none may be empty."""
    encoding_format: Literal["float", "base64"] = "float"
    """Vectors as arrays of numbers, or as base64 of little-endian float32."""
    dimensions: int | None = None
    """Numbers of each vector to keep, of models that were trained for it; if it is not said,
    all."""
    user: str | None = None
    """A label; it changes nothing."""
    priority: int = 0
    """Lower goes first; only 0 where the server does not order by priority."""
    cache_salt: str | None = None
    """Shares cached prompts only with requests of the same salt."""
    timeout: float | None = None
    """Seconds after which the answer must be complete, or ends with an error; if it is not said, as
    long as it takes. The X-Request-Timeout header says the same; the sooner counts."""
    request_id: str | None = None
    """A name for the request, in the answer's id and the logs; if it is not said, that of the
    X-Request-Id header, or chance."""
    truncate_prompt_tokens: int | None = None
    """Keep the last so many tokens of each input; -1: as many as fit; if it is not said, an input
    that is too long is refused."""


def parse_embeddings(
    content: bytes, model: Model, max_model_len: int, embedding_dim: int, request_id: str
) -> tuple[EmbeddingCall, str]:
    """A valid call out of a request body, every input tokenized, and the format of its vectors.

    Raises RequestError.
    """
    body = parse_body(content, EmbeddingBody)
    model.check_name(body.model)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    call = embedding_call(
        _inputs(body.input, model.limits.inputs),
        EmbeddingOptions(
            dimensions=body.dimensions,
            truncate_prompt_tokens=body.truncate_prompt_tokens,
            priority=body.priority,
            cache_salt=body.cache_salt,
            timeout=body.timeout,
        ),
        model,
        max_model_len=max_model_len,
        embedding_dim=embedding_dim,
        request_id=request_id,
        input_field="input",
    )
    return call, body.encoding_format


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


def _inputs(value: Any, most: int) -> list[Input]:
    inputs = texts_or_tokens("input", value, most)
    for index, each in enumerate(inputs):
        if each == "":
            field = "input" if isinstance(value, str) else f"input[{index}]"
            raise invalid(field, f'{field} is ""; it must have at least 1 character')
    return inputs
