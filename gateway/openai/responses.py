"""POST /v1/responses: what a body asks for.

A response that is stored keeps its conversation, so that the next one can go on from it; where and
for how long is the router's business.
"""

import json
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from gateway.conversation import ChatMessage, Conversation
from gateway.errors import RequestError, invalid, quote
from gateway.grammar import ANY_OBJECT, GrammarSpec
from gateway.model import Model
from gateway.openai.call import Call
from gateway.openai.response_items import input_turns, response_tool_choice, response_tools
from gateway.openai.schema import (
    GenerationBody,
    checked_text,
    options_of,
    parse_body,
    refuse_unserved,
)
from gateway.openai.structure import named_schema, requested_grammar
from gateway.request import GenerateRequest, check_request_id

MAX_METADATA = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_VALUE_CHARACTERS = 512


class TextBody(BaseModel):
    """What the words of the answer look like."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: dict[str, Any] | None = None


class ReasoningBody(BaseModel):
    """How much the model thinks, where its template can say so."""

    model_config = ConfigDict(strict=True, extra="allow")

    effort: str | None = None


class ResponsesBody(GenerationBody):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    store: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    reasoning: ReasoningBody | None = None
    metadata: dict[str, str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_REFUSED: Mapping[str, tuple[Any, ...]] = {
    # field: the values that ask for nothing
    "background": (None, False),
    "context_management": (None, []),
    "conversation": (None,),
    "include": (None, []),
    "max_tool_calls": (None,),
    "moderation": (None,),
    "prompt": (None,),
    "service_tier": (None, "auto", "default"),
    "top_logprobs": (None, 0),
    "truncation": (None, "disabled"),
}
_REFUSED_IN_TEXT: Mapping[str, tuple[Any, ...]] = {"verbosity": (None, "medium")}
_REFUSED_IN_REASONING: Mapping[str, tuple[Any, ...]] = {
    "summary": (None,),
    "generate_summary": (None,),
}
_OTHER_ENDPOINTS: Mapping[str, tuple[Any, ...]] = {
    # Fields of the other endpoints, for which this one has other names or no use.
    "n": (None, 1),
    "max_tokens": (None,),
    "response_format": (None,),
    "truncate_prompt_tokens": (None,),
    "return_token_ids": (None, False),
    "prompt_logprobs": (None, 0),
    "use_beam_search": (None, False),
    "length_penalty": (None,),
    "early_stopping": (None, False),
}


@dataclass(frozen=True, slots=True, eq=False)
class StoredResponse:
    """A response that is kept."""

    body: Mapping[str, Any]
    """As it was answered."""
    turns: tuple[ChatMessage, ...]
    """The conversation up to its end, without instructions: they hold for one response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCall(Call):
    """A parsed body."""

    response_id: str
    said: Mapping[str, Any]
    """What the response says of its request."""
    turns: tuple[ChatMessage, ...]
    """The conversation that is answered, without instructions."""
    stores: bool


FindResponse = Callable[[str], StoredResponse]
"""Raises RequestError: there is none of that id."""


def parse_response(
    content: bytes,
    model: Model,
    max_model_len: int,
    request_id: str,
    dice: random.Random,
    find: FindResponse,
    *,
    keeps: bool = True,
) -> ResponseCall:
    """A valid call out of a request body, with the prompt rendered and tokenized; `find` looks
    up the response that it goes on from, `keeps` says whether any are kept.

    Raises RequestError.
    """
    body = parse_body(content, ResponsesBody)
    model.check_name(body.model)
    _refuse(body)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    turns = [*_turns_before(body, find), *input_turns(body.input)]
    prompt = model.chat(_conversation(body, turns), max_model_len, _grammar(body))
    request = model.build(
        prompt.token_ids,
        options_of(
            body,
            max_tokens=body.max_output_tokens,
            max_tokens_field="max_output_tokens",
            shown_tokens=prompt.parsing.shown_tokens if prompt.parsing else frozenset(),
            grammar=prompt.grammar,
        ),
        max_model_len,
        dice=dice,
        request_id=request_id,
        prompt_field="input",
    )
    stores = keeps and body.store is not False
    return ResponseCall(
        request_id=request_id,
        model=model.name,
        requests=(request,),
        streams=body.streams,
        include_usage=False,
        wants_logprobs=False,
        wants_token_ids=False,
        parsing=prompt.parsing,
        response_id=f"resp_{secrets.token_hex(16)}",
        said=_said(body, request, stores=stores),
        turns=tuple(turns),
        stores=stores,
    )


def _refuse(body: ResponsesBody) -> None:
    refuse_unserved(body, _REFUSED)
    for field, allowed in _OTHER_ENDPOINTS.items():
        if (value := getattr(body, field)) not in allowed:
            raise invalid(field, f"{field} is {quote(value)}; a response has no such field")
    if body.stream_options and body.stream_options.continuous_usage_stats:
        field = "stream_options.continuous_usage_stats"
        raise invalid(field, f"{field} is true; a response says its usage at its end")
    if body.text is not None:
        refuse_unserved(body.text, _REFUSED_IN_TEXT, prefix="text.")
    if body.reasoning is not None:
        refuse_unserved(body.reasoning, _REFUSED_IN_REASONING, prefix="reasoning.")
    metadata = body.metadata or {}
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


def _turns_before(body: ResponsesBody, find: FindResponse) -> tuple[ChatMessage, ...]:
    if not body.previous_response_id:
        return ()
    try:
        return find(body.previous_response_id).turns
    except RequestError as error:
        field = "previous_response_id"
        raise RequestError(error.fault, error.message, field=field) from error


def _conversation(body: ResponsesBody, turns: list[ChatMessage]) -> Conversation:
    first = []
    if body.instructions:
        first = [ChatMessage("system", checked_text("instructions", body.instructions))]
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning is not None and body.reasoning.effort is not None:
        arguments.setdefault("reasoning_effort", body.reasoning.effort)
    return Conversation(
        messages=[*first, *turns],
        messages_field="input",
        tools=response_tools(body.tools),
        tool_choice=response_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_arguments=arguments,
    )


def _grammar(body: ResponsesBody) -> GrammarSpec | None:
    """What `text` or vLLM's fields ask for, but not both."""
    asked, formatted = requested_grammar(body), _text_grammar(body)
    if asked is not None and formatted is not None:
        raise invalid(
            asked.field,
            f"{asked.field} and {formatted.field} are both given; there may be at most one of them",
        )
    return asked or formatted


def _text_grammar(body: ResponsesBody) -> GrammarSpec | None:
    said = body.text.format if body.text else None
    if said is None:
        return None
    match said.get("type"):
        case "text":
            return None
        case "json_object":
            return GrammarSpec.json_schema(ANY_OBJECT, "text.format")
        case "json_schema":
            return named_schema("text.format", said)
        case other:
            raise invalid(
                "text.format.type",
                f"text.format.type is {quote(other)}; "
                "it must be one of text, json_object, json_schema",
            )


def _said(body: ResponsesBody, request: GenerateRequest, *, stores: bool) -> dict[str, Any]:
    """The request, as the response repeats it."""
    said: dict[str, Any] = {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": stores,
        "temperature": request.sampling.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [{"parameters": None, "strict": None} | tool for tool in body.tools or ()],
        "top_logprobs": 0,
        "top_p": request.sampling.top_p,
        "truncation": "disabled",
    }
    extra = body.model_extra or {}
    if body.user is not None:
        said["user"] = body.user
    for name in ("prompt_cache_key", "safety_identifier"):
        if extra.get(name) is not None:
            said[name] = extra[name]
    for name, value in said.items():
        _check_writable(name, value)
    return said


def _check_writable(field: str, value: Any) -> None:
    """JSON that was read cannot always be written: half a surrogate pair, 1e999."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise invalid(field, f"{field} has a lone surrogate; it must be Unicode") from error
    except ValueError as error:
        raise invalid(field, f"{field} has a number that is too large") from error
