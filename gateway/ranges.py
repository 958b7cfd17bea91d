"""What the numbers and lists of a request may be: one table for the check and for the document.

Fields are called as OpenAI's clients and vLLM's call them; another dialect's name for one of them
has a row of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import invalid, quote
from gateway.limits import RequestLimits
from protos.limits import MAX_REPETITION_PENALTY

MAX_UINT64 = (1 << 64) - 1
MAX_TIMEOUT_S = 86_400
"""A day: who waits longer does not wait."""
_MAX_INT32 = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a field takes."""

    low: float | None = None
    """The least one."""
    above: float | None = None
    """What it must be greater than."""
    high: float | None = None
    """The greatest one."""
    limit: str | None = None
    """The operator's limit that is the greatest one, in place of `high`."""

    def most(self, limits: RequestLimits) -> float | None:
        """The greatest one, by the operator's word where he has one."""
        return self.high if self.limit is None else int(getattr(limits, self.limit))


@dataclass(frozen=True, slots=True)
class Count:
    """How many entries a field takes; both are the operator's limits."""

    limit: str
    characters: str | None = None
    """Of each entry."""


RANGES: Mapping[str, Range] = {
    "n": Range(low=1, limit="n"),
    "best_of": Range(low=1, limit="n"),
    "max_tokens": Range(low=1),
    "max_completion_tokens": Range(low=1),
    "max_output_tokens": Range(low=1),
    "min_tokens": Range(low=0),
    "temperature": Range(low=0, high=2),
    "top_p": Range(above=0, high=1),
    "top_k": Range(low=-1, high=_MAX_INT32),
    "min_p": Range(low=0, high=1),
    "repetition_penalty": Range(above=0, high=MAX_REPETITION_PENALTY),
    "presence_penalty": Range(low=-2, high=2),
    "frequency_penalty": Range(low=-2, high=2),
    "seed": Range(low=-(1 << 63), high=MAX_UINT64),
    "logprobs": Range(low=0, limit="logprobs"),
    "top_logprobs": Range(low=0, limit="logprobs"),
    "prompt_logprobs": Range(low=0, limit="logprobs"),
    "priority": Range(low=-(1 << 31), high=_MAX_INT32),
    "length_penalty": Range(low=-10, high=10),
    "truncate_prompt_tokens": Range(low=-1),
    "dimensions": Range(low=1),
    "thinking_token_budget": Range(low=1),
    "max_tool_calls": Range(low=0),
    "timeout": Range(above=0, high=MAX_TIMEOUT_S),
}

COUNTS: Mapping[str, Count] = {
    "stop": Count("stop", "stop_characters"),
    "stop_sequences": Count("stop", "stop_characters"),
    "stop_token_ids": Count("stop_token_ids"),
    "logit_bias": Count("logit_bias"),
    "bad_words": Count("bad_words", "bad_word_characters"),
    "guided_choice": Count("choice"),
    "tools": Count("tools"),
    "prompt": Count("prompts"),
    "input": Count("inputs"),
}


def check_known_range(
    name: str, value: float | None, limits: RequestLimits, *, said_as: str | None = None
) -> None:
    """`check_range` of a field in the table, which the client calls `said_as`."""
    known = RANGES[name]
    check_range(said_as or name, value, known.low, known.most(limits), above=known.above)


def check_range(
    name: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
) -> None:
    """Raises RequestError if `value` is said and not in low..high (both allowed) or not > above."""
    if value is None:
        return
    if low is not None and not value >= low:
        raise invalid(name, f"{name} is {number(value)}; it must be at least {number(low)}")
    if above is not None and not value > above:
        raise invalid(name, f"{name} is {number(value)}; it must be above {number(above)}")
    if high is not None and not value <= high:
        raise invalid(name, f"{name} is {number(value)}; it must be at most {number(high)}")


def number(value: float) -> str:
    """For a message."""
    return quote(value) if isinstance(value, int) else f"{value:g}"
