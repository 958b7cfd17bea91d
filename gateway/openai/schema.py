"""The request bodies of OpenAI's API (with vLLM's extra fields): types only.

Types are strict: "0.5" is not a number. Ranges are `gateway.request`'s. Fields that exist in these
APIs but would change the answer in a way that is not served are refused by name; any other
unknown field is ignored, as clients expect.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gateway.errors import Fault, RequestError, invalid, quote
from gateway.nesting import is_deeper
from gateway.openai.structure import StructuredBody, requested_grammar
from gateway.request import BeamOptions, Options


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(StructuredBody):
    """What both endpoints share."""

    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    user: str | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of the stream tells the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def prompt_room(self, max_model_len: int) -> int:
        """Tokens that a prompt may have before it is truncated."""
        return max_model_len if self.truncate_prompt_tokens is None else _MANY


class MessageBody(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: Any = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Any = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None


_MANY = 1 << 62
_NEITHER = (None, False)
_EMPTY: tuple[Any, ...] = (None, [], {})

_REFUSED: Mapping[str, tuple[Any, ...]] = {
    # field: the values that ask for nothing
    "logits_processors": _EMPTY,
}

REFUSED_IN_CHAT: Mapping[str, tuple[Any, ...]] = {
    **_REFUSED,
    "functions": _EMPTY,
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
    "documents": _EMPTY,
    "chat_template": (None,),
    "echo": _NEITHER,
    "include_reasoning": (None, True),
}

REFUSED_IN_COMPLETION: Mapping[str, tuple[Any, ...]] = {
    **_REFUSED,
    "suffix": (None, ""),
    "prompt_embeds": (None,),
}

_EXPECTED = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_EXPECTED_OF_FIELD = {
    "early_stopping": 'true, false or "never"',
    "stop": "a string or an array of strings",
}
_MAX_ID_DIGITS = 10
MAX_BODY_DEPTH = 128

Body = TypeVar("Body", bound=BaseModel)


def parse_body(content: bytes, schema: type[Body]) -> Body:
    """Reads a request body. Raises RequestError: not JSON, or a field of a wrong type."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise RequestError(Fault.INVALID, f"the body is {quote(value)}; it must be a JSON object")
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _wrong_type(error.errors(include_url=False)[0]) from error


def refuse_unserved(
    body: BaseModel, refused: Mapping[str, Sequence[Any]], prefix: str = ""
) -> None:
    """Raises RequestError if `body` asks for something that would have to be ignored."""
    for name, value in (body.model_extra or {}).items():
        if name in refused and value not in refused[name]:
            field = prefix + name
            raise invalid(field, f"{field} is {quote(value)}; it is not supported by this server")


def check_stream(body: GenerationBody) -> None:
    """Raises RequestError for what only a stream has, or no stream has."""
    if body.stream_options is not None and not body.streams:
        raise invalid("stream_options", "stream_options is given; it needs stream to be true")
    if body.prompt_logprobs and body.streams:
        raise invalid(
            "prompt_logprobs",
            f"prompt_logprobs is {body.prompt_logprobs}; it needs stream to be false",
        )


_WITH_BEAMS = frozenset(
    (
        *("model", "prompt", "messages", "n", "best_of", "max_tokens", "max_completion_tokens"),
        *("seed", "logprobs", "top_logprobs", "stop_token_ids", "ignore_eos", "echo"),
        *("include_stop_str_in_output", "skip_special_tokens", "return_token_ids"),
        *("truncate_prompt_tokens", "chat_template_kwargs", "add_generation_prompt"),
        *("continue_final_message", "reasoning_effort", "parallel_tool_calls"),
        *("priority", "cache_salt", "request_id", "user"),
        *("use_beam_search", "length_penalty", "early_stopping"),
    )
)
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
        for name, nothing in (("length_penalty", (None, 1)), ("early_stopping", (None, False))):
            value = getattr(body, name)
            if value not in nothing:
                raise invalid(
                    name, f"{name} is {quote(value)}; it needs use_beam_search to be true"
                )
        return
    for name in sorted(type(body).model_fields.keys() - _WITH_BEAMS):
        value = getattr(body, name)
        if value and value not in _WITHOUT_EFFECT.get(name, ()):
            raise invalid(
                name, f"{name} is {quote(value)}; with use_beam_search it is not supported"
            )


def _beams(body: GenerationBody) -> BeamOptions | None:
    """As many beams as there are samples; `n` of them are the answer."""
    if not body.use_beam_search:
        return None
    width = max(body.n or 1, getattr(body, "best_of", None) or 1)
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    return BeamOptions(
        width=width, length_penalty=penalty, early_stopping=body.early_stopping or False
    )


def checked_text(field: str, text: str) -> str:
    """The text itself. Raises RequestError: JSON can write half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(
            field, f"{field} has a lone surrogate at character {error.start}; it must be Unicode"
        ) from error
    return text


def options_of(body: GenerationBody, **said: Any) -> Options:
    """The shared fields; `said` are the dialect's own."""
    stop = body.stop
    options: dict[str, Any] = {
        "n": body.n,
        "max_tokens": body.max_tokens,
        "min_tokens": body.min_tokens,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": body.seed,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "stop_token_ids": body.stop_token_ids or (),
        "ignore_eos": bool(body.ignore_eos),
        "logit_bias": _logit_bias(body.logit_bias or {}),
        "include_stop_str_in_output": bool(body.include_stop_str_in_output),
        "skip_special_tokens": body.skip_special_tokens is not False,
        "priority": body.priority,
        "cache_salt": body.cache_salt,
        "truncate_prompt_tokens": body.truncate_prompt_tokens,
        "beams": _beams(body),
        "num_prompt_logprobs": None if body.streams else body.prompt_logprobs,
        "allowed_token_ids": body.allowed_token_ids,
        "bad_words": [checked_text("bad_words", word) for word in body.bad_words or ()],
    }
    if said.get("grammar") is None:
        said["grammar"] = requested_grammar(body)
    return Options(**(options | said))


def parse_json(content: bytes) -> Any:
    """The value a body is. Raises RequestError: not JSON."""
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _not_json("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _not_json("it is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise _not_json("it has a number of too many digits") from error
    if is_deeper(value, MAX_BODY_DEPTH):
        raise _not_json(f"it is nested too deeply; it must be at most {MAX_BODY_DEPTH} deep")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _not_json(f"{name} is not a JSON number")


def _not_json(reason: str) -> RequestError:
    return RequestError(Fault.INVALID, f"the body is not valid JSON: {reason}")


def _wrong_type(details: ErrorDetails) -> RequestError:
    field = ""
    expected = _EXPECTED.get(details["type"], details["msg"])
    for step in details["loc"]:
        if isinstance(step, int):
            field += f"[{step}]"
        elif step == "str":
            expected = "a string or an array"  # the first member of a union
            break
        else:
            field += f".{step}" if field else step
        if field in _EXPECTED_OF_FIELD:
            expected = _EXPECTED_OF_FIELD[field]
            break  # what follows names members of a union
    if details["type"] == "missing":
        return invalid(field, f"{field} is missing")
    return invalid(field, f"{field} is {quote(details['input'])}; it must be {expected}")


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    by_token = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS):
            raise invalid("logit_bias", f"logit_bias has key {quote(key)}; keys must be token ids")
        by_token[int(key)] = value
    return by_token
