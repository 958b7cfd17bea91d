"""How much one request may ask for: what an operator can set, as `--limit NAME=VALUE`.

What scheduler and worker check again is bounded by what they take; the rest by the largest body.
"""

from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any

from protos.grammar import MAX_GRAMMAR_BYTES
from protos.limits import MAX_BIASED_TOKENS, MAX_LOGPROBS, MAX_SAMPLES, MAX_STOP_TOKENS

_MAX_END_TOKENS = 32
"""Of the model's own, for which there must be room beside the client's."""
_MAX_OWN_STOP_TOKENS = MAX_STOP_TOKENS - _MAX_END_TOKENS
MAX_SCHEMA_DEPTH = 128
"""As deep as a body may be."""


def _limit(default: int, says: str, *, least: int = 1, most: int | None = None) -> int:
    """A field: its default, what it counts, and the values that an operator may set."""
    metadata = {"says": says, "least": least, "most": most}
    value: int = field(default=default, metadata=metadata)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The most that one request may ask for. Whoever refuses it names field, limit and value."""

    n: int = _limit(MAX_SAMPLES, "n and best_of", most=MAX_SAMPLES)
    logprobs: int = _limit(
        MAX_LOGPROBS, "logprobs, top_logprobs and prompt_logprobs", least=0, most=MAX_LOGPROBS
    )
    stop: int = _limit(16, "stop strings", least=0)
    stop_characters: int = _limit(1024, "characters of each")
    stop_token_ids: int = _limit(
        _MAX_OWN_STOP_TOKENS, "stop tokens", least=0, most=_MAX_OWN_STOP_TOKENS
    )
    logit_bias: int = _limit(MAX_BIASED_TOKENS, "biased tokens", least=0, most=MAX_BIASED_TOKENS)
    bad_words: int = _limit(256, "words that must not come", least=0)
    bad_word_characters: int = _limit(256, "characters of each")
    beam_tokens: int = _limit(1024, "max_tokens of a beam search: each costs every beam a request")
    prompts: int = _limit(1024, "prompts of a completion")
    choices: int = _limit(1024, "choices of a completion: prompts times n")
    inputs: int = _limit(2048, "inputs of an embedding")
    tools: int = _limit(128, "tools", least=0)
    tool_bytes: int = _limit(65_536, "bytes of the parameters of each, as JSON")
    tools_bytes: int = _limit(1_048_576, "bytes of all of them, with their descriptions")
    tool_description: int = _limit(16_384, "characters of the description of each", least=0)
    grammar_bytes: int = _limit(
        65_536,
        "bytes of a schema, regex or grammar, with what tools and thoughts add",
        most=MAX_GRAMMAR_BYTES,
    )
    schema_depth: int = _limit(32, "levels of a JSON schema", most=MAX_SCHEMA_DEPTH)
    schema_values: int = _limit(2000, "values in a JSON schema")
    choice: int = _limit(1000, "texts that an answer is one of")


DEFAULT_LIMITS = RequestLimits()


def parse_limits(said: Iterable[str]) -> RequestLimits:
    """The limits out of NAME=VALUE, the last one of a name; the others are the defaults.

    Raises ValueError, with a message for the operator.
    """
    known = {each.name: each for each in fields(RequestLimits)}
    values: dict[str, int] = {}
    for text in said:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"limit is {text!r}; it must be NAME=VALUE")
        if name not in known:
            raise ValueError(f"limit {name!r} does not exist; there are {', '.join(known)}")
        values[name] = _value(known[name], value)
    return RequestLimits(**values)


def described_limits() -> str:
    """Every limit with its default and what it counts, for --help."""
    return "; ".join(
        f"{each.name}={each.default} ({each.metadata['says']})" for each in fields(RequestLimits)
    )


def _value(limit: Field[Any], text: str) -> int:
    least, most = limit.metadata["least"], limit.metadata["most"]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"limit {limit.name} is {text!r}; it must be a whole number")
    value = int(text)
    if value < least:
        raise ValueError(f"limit {limit.name} is {value}; it must be at least {least}")
    if most is not None and value > most:
        raise ValueError(f"limit {limit.name} is {value}; it must be at most {most}")
    return value
