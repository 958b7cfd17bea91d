"""What a client said about one generation, in no dialect, and what holds where it said nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.beams import BeamOptions
from gateway.grammar import GrammarSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client said about one generation, unchecked; None is "not said"."""

    n: int | None = None
    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    """The name by which the client said it."""
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    """0 and -1 both keep all."""
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_field: str = "stop"
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    num_logprobs: int | None = None
    logprobs_field: str = "logprobs"
    num_prompt_logprobs: int | None = None
    prompt_logprobs_field: str = "prompt_logprobs"
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    shown_tokens: frozenset[int] = frozenset()
    priority: int | None = None
    cache_salt: str | None = None
    beams: BeamOptions | None = None
    truncate_prompt_tokens: int | None = None
    """The last so many tokens of the prompt are kept; -1: as many as leave room for max_tokens."""
    grammar: GrammarSpec | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    """Tokenized by whoever has the tokenizer."""
    timeout: float | None = None
    timeout_field: str = "timeout"


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's authors recommend (generation_config.json), else what OpenAI does."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
