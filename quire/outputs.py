"""What `LLM.generate` returns, in vLLM's words."""

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
