"""How to choose tokens, in vLLM's words.

Checked when it is made: an error names the field, the limit and the value, before anything is sent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from protos.limits import MAX_LOGPROBS, MAX_SAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What the whole output must be: exactly one of these. Raises ValueError otherwise."""

    json: str | Mapping[str, Any] | None = None
    """JSON that this schema accepts."""
    regex: str | None = None
    """What this regular expression matches, in Rust's syntax."""
    choice: Sequence[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """What this context-free grammar has as its rule `start`, in llguidance's Lark."""
    json_object: bool | None = None
    """True: any JSON object."""

    def __post_init__(self) -> None:
        said = [each.name for each in fields(self) if getattr(self, each.name) not in (None, False)]
        if len(said) != 1:
            names = ", ".join(each.name for each in fields(self))
            given = " and ".join(said) or "none"
            raise ValueError(f"structured_outputs has {given}; it must have one of {names}")
        [name] = said
        value = getattr(self, name)
        kinds: dict[str, tuple[type, ...]] = {"json": (str, Mapping), "json_object": (bool,)}
        kinds |= {"regex": (str,), "grammar": (str,), "choice": (Sequence,)}
        if not isinstance(value, kinds[name]) or (name == "choice" and isinstance(value, str)):
            expected = " or ".join(kind.__name__ for kind in kinds[name])
            raise ValueError(
                f"structured_outputs.{name} is {value!r:.60}; it must be of type {expected}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of a request. Raises ValueError for a value outside its range."""

    n: int = 1
    """Samples of the same prompt, 1 to 128."""
    temperature: float = 1.0
    """Divides the logits, 0 to 2; 0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set with at least this probability; above 0, at most 1."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 and -1 keep all."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest, 0 to 1."""
    seed: int | None = None
    """The same seed gives the same tokens; sample i draws with seed + i. None: a random one."""
    max_tokens: int | None = 16
    """Output tokens at most; None: what is left of the model's length. 0 only with prompt_logprobs:
    the prompt is scored, and nothing said."""
    min_tokens: int = 0
    """Output tokens before which nothing ends the output."""
    stop: str | Sequence[str] = ()
    """Text that ends the output and is not part of it."""
    include_stop_str_in_output: bool = False
    """It is part of it, all the same."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the output."""
    ignore_eos: bool = False
    """Go on past the model's end token."""
    presence_penalty: float = 0.0
    """-2 to 2."""
    frequency_penalty: float = 0.0
    """-2 to 2."""
    repetition_penalty: float = 1.0
    """Above 0; 1 is off."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to a token's logit, -100 to 100."""
    logprobs: int | None = None
    """Alternatives per token, 0 to 20; None: no logprobs."""
    prompt_logprobs: int | None = None
    """Likewise, for the tokens of the prompt."""
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    """What the whole output must be; None: anything. A dict of the fields becomes the object."""
    allowed_token_ids: Sequence[int] | None = None
    """Tokens that may be chosen; None: all."""
    bad_words: Sequence[str] = ()
    """Words that the output must not contain."""
    skip_special_tokens: bool = True
    """Special tokens are not part of the text."""
    truncate_prompt_tokens: int | None = None
    """Tokens of the prompt to keep, the last ones; -1: as many as leave room for max_tokens; None:
    all, and a prompt that is too long is an error."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        empty: dict[str, object] = {"stop": (), "stop_token_ids": (), "bad_words": ()}
        for name, nothing in (empty | {"logit_bias": {}}).items():
            if getattr(self, name) is None:  # which is how vLLM says it
                object.__setattr__(self, name, nothing)
        if isinstance(self.structured_outputs, Mapping):
            structure = _structure_of(self.structured_outputs)
            object.__setattr__(self, "structured_outputs", structure)
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if any(not text for text in self.stop):
            raise ValueError("stop has an empty text; each must have at least 1 character")
        _check_integer("n", self.n, 1, MAX_SAMPLES)
        _check_integer("top_k", self.top_k, 0, hint="0 keeps all")
        _check_integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            least = 1 if self.prompt_logprobs is None else 0
            _check_integer("max_tokens", self.max_tokens, max(least, self.min_tokens))
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if self.truncate_prompt_tokens is not None:
            _check_truncation(self.truncate_prompt_tokens)
        self._check_tokens_and_words()
        self._check_reals()

    def _check_tokens_and_words(self) -> None:
        for token_id in (*self.stop_token_ids, *self.logit_bias, *(self.allowed_token_ids or ())):
            _check_integer("a token id", token_id, 0, 2**31 - 1)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids has 0 tokens; it must have at least 1")
        if isinstance(self.bad_words, str):
            raise ValueError(f"bad_words is {self.bad_words!r}; it must be a list of words")
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise ValueError(
                f"structured_outputs is {self.structured_outputs!r:.60}; "
                "it must be StructuredOutputsParams or a dict of its fields"
            )

    def _check_reals(self) -> None:
        _check_real("temperature", self.temperature, 0, 2)
        _check_real("top_p", self.top_p, 0, 1, open_below=True)
        _check_real("min_p", self.min_p, 0, 1)
        _check_real("presence_penalty", self.presence_penalty, -2, 2)
        _check_real("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_real("repetition_penalty", self.repetition_penalty, 0, math.inf, open_below=True)
        for bias in self.logit_bias.values():
            _check_real("logit_bias", bias, -100, 100)


def _structure_of(said: Mapping[str, Any]) -> StructuredOutputsParams:
    known = [each.name for each in fields(StructuredOutputsParams)]
    if unknown := [name for name in said if name not in known]:
        raise ValueError(
            f"structured_outputs has {unknown[0]}; it must have one of {', '.join(known)}"
        )
    return StructuredOutputsParams(**said)


def _check_truncation(kept: object) -> None:
    _check_integer("truncate_prompt_tokens", kept, -1)
    if kept == 0:
        raise ValueError(
            "truncate_prompt_tokens is 0; it must be at least 1, or -1 for as many as fit"
        )


def _check_integer(
    name: str, value: object, low: int, high: int | None = None, hint: str = ""
) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be an integer")
    limits = f"at least {low}" if high is None else f"{low} to {high}"
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; it must be {limits}{hint and f' ({hint})'}")


def _check_real(
    name: str, value: object, low: float, high: float, *, open_below: bool = False
) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    start = f"above {low}" if open_below else f"at least {low}"
    limits = start if high == math.inf else f"{start} and at most {high}"
    if not low <= value <= high or (open_below and value == low) or math.isinf(value):
        raise ValueError(f"{name} is {value}; it must be {limits}")
