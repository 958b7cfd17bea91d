"""What both dialects ask of embeddings: the requests of a call, and what is done to their vectors.

A vector is asked for like a generation of no tokens: the same request, scheduled, replayed and
withdrawn in the same way.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gateway.errors import Fault, RequestError, invalid, one_of, quote
from gateway.model import Model
from gateway.options import Options
from gateway.ranges import check_range
from gateway.request import GenerateRequest, check_token_ids

Float32Column = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOptions:
    """What a client said beside its inputs, unchecked; None is "not said"."""

    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    """-1: as many as the model takes."""
    priority: int | None = None
    cache_salt: str | None = None
    timeout: float | None = None
    timeout_field: str = "timeout"


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """A valid call."""

    request_id: str
    model: str
    requests: tuple[GenerateRequest, ...]
    """One per input."""
    dimensions: int | None
    """Numbers of each vector to keep; None: all."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of all inputs."""
        return sum(len(request.prompt_token_ids) for request in self.requests)


def embedding_call(
    inputs: Sequence[str | Sequence[int]],
    options: EmbeddingOptions,
    model: Model,
    *,
    max_model_len: int,
    embedding_dim: int,
    request_id: str,
    input_field: str,
) -> EmbeddingCall:
    """Checks everything and tokenizes. Raises RequestError naming field, limit and value."""
    if not 1 <= len(inputs) <= model.limits.inputs:
        raise invalid(
            input_field,
            f"{input_field} has {len(inputs)} entries; it must have 1 to {model.limits.inputs}",
        )
    dimensions = _dimensions(options.dimensions, embedding_dim, model)
    kept = options.truncate_prompt_tokens
    check_range("truncate_prompt_tokens", kept, -1, max_model_len)
    if kept == 0:
        raise invalid(
            "truncate_prompt_tokens",
            "truncate_prompt_tokens is 0; it must be at least 1, or -1 for as many as fit",
        )
    if kept == -1:
        kept = max_model_len
    requests = tuple(
        vector_request(
            model,
            _tokens(each, model, max_model_len, kept, input_field),
            max_model_len,
            request_id=request_id,
            input_field=input_field,
            priority=options.priority,
            cache_salt=options.cache_salt,
            timeout=options.timeout,
            timeout_field=options.timeout_field,
        )
        for each in inputs
    )
    return EmbeddingCall(request_id, model.name, requests, dimensions)


def vector_request(
    model: Model,
    token_ids: Sequence[int],
    max_model_len: int,
    *,
    request_id: str,
    input_field: str = "input",
    priority: int | None = None,
    cache_salt: str | None = None,
    timeout: float | None = None,
    timeout_field: str = "timeout",
) -> GenerateRequest:
    """The request of one vector. Raises RequestError."""
    if len(token_ids) > max_model_len:
        raise _too_long(input_field, str(len(token_ids)), max_model_len)
    request = model.build(
        token_ids,
        # Nothing is drawn. One token has room beyond the longest prompt; then it is not wanted.
        Options(
            max_tokens=1,
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=0,
            ignore_eos=True,
            priority=priority,
            cache_salt=cache_salt,
            timeout=timeout,
            timeout_field=timeout_field,
        ),
        max_model_len + 1,
        dice=random.Random(),
        request_id=request_id,
        prompt_field=input_field,
    )
    return replace(request, max_tokens=0)


def shortened(vector: bytes, dimensions: int | None) -> Float32Column:
    """The first numbers of a vector, at length 1 again; all of it, as it is, for None."""
    whole: Float32Column = np.frombuffer(vector, "<f4")
    if dimensions is None:
        return whole
    kept = whole[:dimensions]
    length = float(np.linalg.norm(kept))
    return kept / np.float32(length) if length > 0 else kept


def _tokens(
    each: str | Sequence[int], model: Model, max_model_len: int, kept: int | None, field: str
) -> Sequence[int]:
    if not isinstance(each, str):
        check_token_ids(field, each, model.tokenizer.vocab_size)
        return each if kept is None else each[:kept]
    if kept is not None:
        return model.tokenizer.encode_start(each, kept)
    # Megabytes that cannot fit are refused before they are tokenized.
    least = model.tokenizer.least_tokens(len(each))
    if least > max_model_len:
        raise _too_long(field, f"at least {least}", max_model_len)
    return model.tokenizer.encode(each, add_special_tokens=True)


def _too_long(field: str, count: str, max_model_len: int) -> RequestError:
    return RequestError(
        Fault.TOO_LONG,
        f"{field} has an entry of {count} tokens; this model embeds at most {max_model_len}",
        field=field,
    )


def _dimensions(asked: int | None, embedding_dim: int, model: Model) -> int | None:
    check_range("dimensions", asked, 1, embedding_dim)
    if asked is None or asked == embedding_dim:
        return None
    allowed = model.matryoshka_dimensions
    if allowed is None:
        raise invalid(
            "dimensions",
            f"dimensions is {asked}; vectors of model {quote(model.name)} have {embedding_dim} "
            "numbers, and it was not trained for fewer",
        )
    if allowed and asked not in allowed:
        raise invalid("dimensions", f"dimensions is {asked}; it must be {one_of(sorted(allowed))}")
    return asked
