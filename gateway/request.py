"""From what a client said (`Options`) to a request that is known to be right (`GenerateRequest`).

Both dialects, OpenAI's JSON and `InferenceService`, become `Options`; `build_request` is the one
place that knows defaults and ranges. Whoever holds a `GenerateRequest` need not check anything.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gateway.beams import BeamOptions, check_beams
from gateway.errors import Fault, RequestError, invalid, quote
from gateway.grammar import compiled
from gateway.limits import RequestLimits
from gateway.options import Options, SamplingDefaults
from gateway.ranges import MAX_UINT64, check_known_range, check_range, number

Int32Column = npt.NDArray[np.int32]
Float32Column = npt.NDArray[np.float32]

LEAST_TEMPERATURE = 1e-3
"""Anything colder is greedy: dividing float32 logits by less could overflow."""

SALT = re.compile(r"[A-Za-z0-9_-]{1,64}")
REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token; every value is in range."""

    temperature: float
    """0 is greedy."""
    top_k: int
    """0 keeps all."""
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    logit_bias: tuple[tuple[int, float], ...]
    num_logprobs: int | None
    """None: no logprobs. 0: the chosen token's alone."""
    num_prompt_logprobs: int | None
    """Likewise, of the prompt's tokens."""
    grammar: str = ""
    """What the whole output must be, as the worker takes it; empty: anything."""
    allowed_token_ids: tuple[int, ...] = ()
    """Empty: all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """What the output must not contain, in tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """A valid request: `n` samples of one prompt. Sample i draws with `seed + i`."""

    request_id: str
    """What the client and the logs see; never a key of ours."""
    prompt_token_ids: Int32Column
    """At least one."""
    n: int
    max_tokens: int
    """At least one; prompt and output fit into the model's length. 0: nothing is generated, the
    answer is the prompt's vector."""
    seed: int
    """0 to 2**64 - 1."""
    sampling: Sampling
    stop: tuple[str, ...]
    eos_token_ids: frozenset[int]
    """Empty when the client wants to go on past the end token."""
    stop_token_ids: frozenset[int]
    """The client's own."""
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    shown_tokens: frozenset[int]
    """Special tokens that are not skipped even so: whoever reads the answer needs them."""
    priority: int
    cache_salt: str
    field_names: Mapping[str, str]
    """What the client calls its prompt, max_tokens, logprobs, those of the prompt and timeout."""
    beams: BeamOptions | None = None
    """None: samples are drawn. Else the `n` best beams are the answers."""
    timeout_s: float | None = None
    """From its arrival to its end, at most; None: as long as it takes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model can take, and what one client may ask of it."""

    max_model_len: int
    """Prompt and output tokens together."""
    vocab_size: int
    eos_token_ids: frozenset[int]
    client: RequestLimits


def build_request(
    prompt_token_ids: Sequence[int],
    options: Options,
    defaults: SamplingDefaults,
    limits: Limits,
    *,
    dice: random.Random,
    request_id: str,
    prompt_field: str,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> GenerateRequest:
    """Checks everything and fills in the defaults; `dice` give a seed where none was said.

    `bad_words` are those of the options, in tokens.

    Raises RequestError naming the field, the limit and the value given.
    """
    for name in ("n", "seed", "priority"):
        check_known_range(name, getattr(options, name), limits.client)
    check_known_range("timeout", options.timeout, limits.client, said_as=options.timeout_field)
    prompt_token_ids = _truncated(prompt_token_ids, options, limits)
    max_tokens = _max_tokens(len(prompt_token_ids), options, limits, prompt_field)
    _check_stop(options, limits)
    if options.cache_salt and not SALT.fullmatch(options.cache_salt):
        raise invalid(
            "cache_salt",
            f"cache_salt is {quote(options.cache_salt)}; "
            "it must be 1 to 64 letters, digits, '-' or '_'",
        )
    _check_beams(options, limits, max_tokens)
    seed = dice.getrandbits(64) if options.seed is None else options.seed & MAX_UINT64
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=np.array(prompt_token_ids, np.int32),
        n=1 if options.n is None else options.n,
        max_tokens=max_tokens,
        seed=seed,
        sampling=_sampling(options, defaults, limits, max_tokens, bad_words),
        stop=tuple(options.stop),
        eos_token_ids=frozenset() if options.ignore_eos else limits.eos_token_ids,
        stop_token_ids=frozenset(options.stop_token_ids),
        include_stop_str_in_output=options.include_stop_str_in_output,
        skip_special_tokens=options.skip_special_tokens,
        shown_tokens=options.shown_tokens,
        priority=options.priority or 0,
        cache_salt=options.cache_salt or "",
        field_names={
            "prompt": prompt_field,
            "max_tokens": options.max_tokens_field,
            "logprobs": options.logprobs_field,
            "prompt_logprobs": options.prompt_logprobs_field,
            "timeout": options.timeout_field,
        },
        beams=options.beams,
        timeout_s=options.timeout,
    )


def check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises RequestError if one is not a token of the model."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise invalid(
            name, f"{name} has {number(wrong)}; token ids of this model are 0 to {vocab_size - 1}"
        )


def check_request_id(name: str, value: str) -> str:
    """The id itself. Raises RequestError if it could not stand in a header or a log line."""
    if not REQUEST_ID.fullmatch(value):
        raise invalid(
            name, f"{name} is {quote(value)}; it must be 1 to 128 visible ASCII characters"
        )
    return value


def check_bad_words(words: Sequence[str], limits: RequestLimits) -> None:
    """Raises RequestError if there are too many, or one is empty or too long."""
    if len(words) > limits.bad_words:
        raise invalid(
            "bad_words",
            f"bad_words has {len(words)} words; it must have at most {limits.bad_words}",
        )
    for word in words:
        if not 1 <= len(word.strip()) <= limits.bad_word_characters:
            raise invalid(
                "bad_words",
                f"bad_words has a word of {len(word.strip())} characters; "
                f"each must have 1 to {limits.bad_word_characters}",
            )


def too_long(
    num_prompt_tokens: int, max_model_len: int, field: str, *, at_least: bool = False
) -> RequestError:
    """The error of a prompt that leaves no room for a single token of output."""
    count = f"at least {num_prompt_tokens}" if at_least else str(num_prompt_tokens)
    return RequestError(
        Fault.TOO_LONG,
        f"the prompt has {count} tokens; "
        f"this model accepts at most {max_model_len} for prompt and output together",
        field=field,
    )


def _truncated(prompt_token_ids: Sequence[int], options: Options, limits: Limits) -> Sequence[int]:
    kept = options.truncate_prompt_tokens
    if kept is None:
        return prompt_token_ids
    check_range("truncate_prompt_tokens", kept, -1, limits.max_model_len)
    if kept == 0:
        raise invalid(
            "truncate_prompt_tokens",
            "truncate_prompt_tokens is 0; it must be at least 1, or -1 for as many as fit",
        )
    if kept < 0:
        kept = max(1, limits.max_model_len - max(1, options.max_tokens or 1))
    return prompt_token_ids[-kept:]


def _check_beams(options: Options, limits: Limits, max_tokens: int) -> None:
    if options.beams is None:
        return
    eos = frozenset[int]() if options.ignore_eos else limits.eos_token_ids
    check_beams(options.beams, len(eos | frozenset(options.stop_token_ids)), limits.client)
    check_range(options.max_tokens_field, max_tokens, 1, limits.client.beam_tokens)
    if options.num_prompt_logprobs is not None:
        raise invalid(
            options.prompt_logprobs_field,
            "use_beam_search is true; with it a prompt has no logprobs",
        )


def _max_tokens(num_prompt: int, options: Options, limits: Limits, prompt_field: str) -> int:
    if num_prompt == 0:
        raise invalid(prompt_field, f"{prompt_field} has 0 tokens; it must have at least 1")
    left = limits.max_model_len - num_prompt
    if left < 1:
        raise too_long(num_prompt, limits.max_model_len, prompt_field)
    if options.max_tokens is None:
        return left
    name = options.max_tokens_field
    check_known_range("max_tokens", options.max_tokens, limits.client, said_as=name)
    if options.max_tokens > left:
        raise RequestError(
            Fault.TOO_LONG,
            f"{name} is {number(options.max_tokens)} and the prompt has {num_prompt} tokens; "
            f"this model accepts at most {limits.max_model_len} for both together",
            field=name,
        )
    return options.max_tokens


def _check_stop(options: Options, limits: Limits) -> None:
    name, client = options.stop_field, limits.client
    if len(options.stop) > client.stop:
        raise invalid(
            name, f"{name} has {len(options.stop)} strings; it must have at most {client.stop}"
        )
    for text in options.stop:
        if not 1 <= len(text) <= client.stop_characters:
            raise invalid(
                name,
                f"{name} has a string of {len(text)} characters; "
                f"each must have 1 to {client.stop_characters}",
            )
    if len(options.stop_token_ids) > client.stop_token_ids:
        raise invalid(
            "stop_token_ids",
            f"stop_token_ids has {len(options.stop_token_ids)} tokens; "
            f"it must have at most {client.stop_token_ids}",
        )
    check_token_ids("stop_token_ids", options.stop_token_ids, limits.vocab_size)


def _sampling(
    options: Options,
    defaults: SamplingDefaults,
    limits: Limits,
    max_tokens: int,
    bad_words: tuple[tuple[int, ...], ...],
) -> Sampling:
    for name in _SAMPLING:
        check_known_range(name, getattr(options, name), limits.client)
    for name, value, said_as in (
        ("logprobs", options.num_logprobs, options.logprobs_field),
        ("prompt_logprobs", options.num_prompt_logprobs, options.prompt_logprobs_field),
    ):
        check_known_range(name, value, limits.client, said_as=said_as)
    if options.min_tokens is not None and options.min_tokens > max_tokens:
        raise invalid(
            "min_tokens",
            f"min_tokens is {number(options.min_tokens)}; "
            f"it must be at most max_tokens, which is {max_tokens}",
        )
    temperature = _said(options.temperature, defaults.temperature)
    return Sampling(
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_k=max(0, _said(options.top_k, defaults.top_k)),
        top_p=_said(options.top_p, defaults.top_p),
        min_p=_said(options.min_p, defaults.min_p),
        repetition_penalty=_said(options.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_said(options.presence_penalty, 0.0),
        frequency_penalty=_said(options.frequency_penalty, 0.0),
        min_tokens=_said(options.min_tokens, 0),
        logit_bias=_logit_bias(options.logit_bias, limits),
        num_logprobs=options.num_logprobs,
        num_prompt_logprobs=options.num_prompt_logprobs,
        grammar=_grammar(options, limits),
        allowed_token_ids=_allowed_token_ids(options.allowed_token_ids, limits.vocab_size),
        bad_words=bad_words,
    )


def _grammar(options: Options, limits: Limits) -> str:
    spec = options.grammar
    if spec is None:
        return ""
    if options.ignore_eos:
        raise invalid(
            "ignore_eos",
            f"ignore_eos is true; an answer that {spec.field} describes ends where it is complete",
        )
    if not limits.eos_token_ids and not options.stop_token_ids:
        raise invalid(
            spec.field,
            f"{spec.field} is given; this model has no end token, "
            "so stop_token_ids must have at least 1 token",
        )
    return compiled(spec, limits.client)


def _allowed_token_ids(token_ids: Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    name = "allowed_token_ids"
    if token_ids is None:
        return ()
    if not 1 <= len(token_ids) <= vocab_size:
        raise invalid(name, f"{name} has {len(token_ids)} tokens; it must have 1 to {vocab_size}")
    check_token_ids(name, token_ids, vocab_size)
    return tuple(sorted(set(token_ids)))


def _logit_bias(bias: Mapping[int, float], limits: Limits) -> tuple[tuple[int, float], ...]:
    most = limits.client.logit_bias
    if len(bias) > most:
        raise invalid(
            "logit_bias", f"logit_bias has {len(bias)} tokens; it must have at most {most}"
        )
    check_token_ids("logit_bias", list(bias), limits.vocab_size)
    for token, value in bias.items():
        check_range(f"logit_bias[{token}]", value, -100, 100)
    return tuple(sorted(bias.items()))


def _said(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value
