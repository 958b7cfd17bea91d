"""What `LLM` and the clients return, in vLLM's words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was, before temperature and filters."""

    logprob: float
    """Natural logarithm of its probability."""
    rank: int
    """1 for the likeliest token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sample of a prompt."""

    index: int
    """Which sample, from 0."""
    text: str
    token_ids: list[int]
    finish_reason: str
    """"stop", "length", "abort" or "error"."""
    logprobs: list[dict[int, Logprob]] | None = None
    """Per token: the chosen one and the alternatives asked for, by id."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and all its samples."""

    prompt: str | None
    """As given; None for a prompt of token ids or a conversation."""
    prompt_token_ids: list[int] | None
    """None for a conversation, which the router rendered."""
    outputs: list[CompletionOutput]
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sample cost."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """News of one sample of a stream."""

    index: int
    """Which sample, from 0."""
    text: str
    """Since its last chunk."""
    token_ids: list[int]
    """Since its last chunk; their text may still be held back."""
    logprobs: list[dict[int, Logprob]] | None
    """One per token, if asked for."""
    finish_reason: str | None
    """"stop" or "length" in a sample's last chunk."""
    usage: Usage | None
    """Comes with it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked for."""

    name: str
    max_model_len: int | None
    """Prompt and output tokens together; None until a worker has attached."""


def output_of(
    prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
    chunks: Sequence[Chunk],
    num_samples: int,
) -> RequestOutput:
    """The whole of a request whose stream has ended."""
    is_ids = not isinstance(prompt, str) and not isinstance(prompt[0], Mapping)
    samples = [[chunk for chunk in chunks if chunk.index == i] for i in range(num_samples)]
    usage = samples[0][-1].usage
    assert usage is not None
    return RequestOutput(
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=[int(token) for token in prompt] if is_ids else None,  # type: ignore[arg-type]
        outputs=[_sample_of(index, sample) for index, sample in enumerate(samples)],
        num_prompt_tokens=usage.num_prompt_tokens,
        num_cached_tokens=usage.num_cached_tokens,
    )


def _sample_of(index: int, chunks: Sequence[Chunk]) -> CompletionOutput:
    last = chunks[-1]
    assert last.finish_reason is not None
    rows = [row for chunk in chunks for row in chunk.logprobs or ()]
    return CompletionOutput(
        index=index,
        text="".join(chunk.text for chunk in chunks),
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
        finish_reason=last.finish_reason,
        logprobs=None if last.logprobs is None else rows,
    )
