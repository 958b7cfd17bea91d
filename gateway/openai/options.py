"""What the fields of a body ask for, and what cannot be asked for together."""

from collections.abc import Mapping
from typing import Any

from gateway.beams import BeamOptions
from gateway.body import checked_text
from gateway.errors import invalid, quote
from gateway.openai.schema import GenerationBody, SamplingBody
from gateway.openai.structure import requested_grammar
from gateway.options import Options
from gateway.ranges import number

MAX_METADATA = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_VALUE_CHARACTERS = 512

_MAX_ID_DIGITS = 10


def check_stream(body: SamplingBody) -> None:
    """Raises RequestError for what only a stream has, or no stream has."""
    if body.stream_options is not None and not body.streams:
        raise invalid("stream_options", "stream_options is given; it needs stream to be true")
    if body.streams and isinstance(body, GenerationBody) and body.prompt_logprobs is not None:
        raise invalid(
            "prompt_logprobs",
            f"prompt_logprobs is {body.prompt_logprobs}; it needs stream to be false",
        )


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raises RequestError for more labels, or longer ones, than OpenAI takes."""
    if len(metadata) > MAX_METADATA:
        raise invalid(
            "metadata", f"metadata has {len(metadata)} keys; it must have at most {MAX_METADATA}"
        )
    for key, value in metadata.items():
        checked_text("metadata", key + value)
        if len(key) > MAX_METADATA_KEY_CHARACTERS or len(value) > MAX_METADATA_VALUE_CHARACTERS:
            raise invalid(
                "metadata",
                f"metadata has {quote(key)} with {len(key)} and {len(value)} characters; keys must "
                f"have at most {MAX_METADATA_KEY_CHARACTERS}, values "
                f"{MAX_METADATA_VALUE_CHARACTERS}",
            )


WITH_BEAMS = frozenset(
    (
        *("model", "prompt", "messages", "n", "best_of", "max_tokens", "max_completion_tokens"),
        *("seed", "logprobs", "top_logprobs", "stop_token_ids", "ignore_eos", "echo"),
        *("include_stop_str_in_output", "skip_special_tokens", "return_token_ids"),
        *("truncate_prompt_tokens", "chat_template_kwargs", "add_generation_prompt"),
        *("continue_final_message", "reasoning_effort", "parallel_tool_calls"),
        *("priority", "cache_salt", "request_id", "user", "safety_identifier", "metadata"),
        *("prompt_cache_key", "prompt_cache_retention", "service_tier", "store", "modalities"),
        *("verbosity", "timeout"),
        *("use_beam_search", "length_penalty", "early_stopping"),
    )
)
"""Fields of chats and completions that a search keeps to; any other, a new one too, is refused."""
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    # what a search may be told although it does not draw
    "temperature": (0, 1),
    "top_p": (1,),
    "top_k": (0, -1),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
}


def check_beams(body: GenerationBody) -> None:
    """Raises RequestError for what a search does not do, or what only a search does."""
    if not body.use_beam_search:
        for name, nothing in (("length_penalty", 1), ("early_stopping", False)):
            value = getattr(body, name)
            if value != nothing:
                raise invalid(
                    name, f"{name} is {_written(value)}; it needs use_beam_search to be true"
                )
        return
    known = type(body).model_fields
    for name in sorted(known.keys() - WITH_BEAMS):
        value = getattr(body, name)
        if value and value != known[name].default and value not in _WITHOUT_EFFECT.get(name, ()):
            raise invalid(
                name, f"{name} is {_written(value)}; with use_beam_search it is not supported"
            )


def _beams(body: GenerationBody) -> BeamOptions | None:
    """As many beams as there are samples; `n` of them are the answer."""
    if not body.use_beam_search:
        return None
    return BeamOptions(
        width=max(body.n, getattr(body, "best_of", None) or 1),
        length_penalty=body.length_penalty,
        early_stopping=body.early_stopping,
    )


def generation_options(body: GenerationBody, **said: Any) -> Options:
    """The fields of chats and completions; `said` are the dialect's own."""
    options: dict[str, Any] = {
        "n": body.n,
        "max_tokens": body.max_tokens,
        "truncate_prompt_tokens": body.truncate_prompt_tokens,
        "beams": _beams(body),
        "num_prompt_logprobs": body.prompt_logprobs,
    }
    return sampling_options(body, **(options | said))


def sampling_options(body: SamplingBody, **said: Any) -> Options:
    """The fields of every endpoint that generates; `said` are the dialect's own."""
    stop = body.stop
    options: dict[str, Any] = {
        "min_tokens": body.min_tokens,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": body.seed,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "stop_token_ids": body.stop_token_ids,
        "ignore_eos": body.ignore_eos,
        "logit_bias": _logit_bias(body.logit_bias),
        "include_stop_str_in_output": body.include_stop_str_in_output,
        "skip_special_tokens": body.skip_special_tokens,
        "priority": body.priority,
        "cache_salt": body.cache_salt,
        "timeout": body.timeout,
        "allowed_token_ids": body.allowed_token_ids,
        "bad_words": [checked_text("bad_words", word) for word in body.bad_words],
    }
    if said.get("grammar") is None:
        said["grammar"] = requested_grammar(body)
    return Options(**(options | said))


def _written(value: Any) -> str:
    """As the client wrote it: 2 is 2, even where a fraction would do."""
    return number(value) if isinstance(value, float) else quote(value)


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    by_token = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS):
            raise invalid("logit_bias", f"logit_bias has key {quote(key)}; keys must be token ids")
        by_token[int(key)] = value
    return by_token
