"""POST /v1/responses: what a body asks for.

A response that is stored keeps its conversation, so that the next one can go on from it; where and
for how long is the router's business.
"""

import json
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from gateway.body import Part, checked_text, parse_body
from gateway.conversation import (
    MAX_ARGUMENTS_BYTES,
    ChatMessage,
    Conversation,
    check_results,
    checked_json,
)
from gateway.errors import RequestError, invalid
from gateway.grammar import GrammarSpec
from gateway.limits import RequestLimits
from gateway.model import ChatPrompt, Model
from gateway.openai import shapes
from gateway.openai.call import Call
from gateway.openai.options import check_metadata, check_stream, sampling_options
from gateway.openai.response_items import (
    input_turns,
    listed_items,
    response_tool_choice,
    response_tools,
)
from gateway.openai.schema import UNSERVED, Effort, SamplingBody
from gateway.openai.structure import format_grammar, requested_grammar
from gateway.openai.truncation import fitting_prompt
from gateway.ranges import check_known_range
from gateway.request import GenerateRequest, check_request_id
from gateway.thinking import effort_arguments

LOGPROBS = "message.output_text.logprobs"
"""What of an answer can be included."""


class TextBody(Part):
    """What the words of the answer look like."""

    model_config = ConfigDict(title="ResponseText")

    format: Annotated[dict[str, Any] | None, WithJsonSchema(shapes.TEXT_FORMAT)] = None
    """Text, a JSON object, or what a JSON schema describes."""
    verbosity: Literal["medium"] | None = None
    """How long answers are is the model's to say."""


class ReasoningBody(Part):
    """How much the model thinks."""

    model_config = ConfigDict(title="ResponseReasoning")

    effort: Effort | None = None
    """How much, if its chat template can say so; if it is not said, as it likes."""
    summary: Literal["auto"] | None = None
    """Thoughts are said in full; nobody sums them up."""
    generate_summary: Literal["auto"] | None = None
    """The same by its older name."""
    context: Literal["auto"] | None = None
    """Which thoughts of earlier turns the model reads again is its chat template's to say."""


class ResponsesBody(SamplingBody):
    """POST /v1/responses."""

    model_config = ConfigDict(title="ResponseRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = {
        "context_management": ([],),
        "conversation": (),
        "moderation": (),
        "prompt": (),
        # What chats and completions have, and a response has no use for.
        "n": (1,),
        "return_token_ids": (False,),
        "prompt_logprobs": (),
        "use_beam_search": (False,),
        **UNSERVED,
    }

    input: Annotated[str | list[dict[str, Any]] | None, WithJsonSchema(shapes.RESPONSE_INPUT)] = (
        None
    )
    """What to answer: a text, or items: messages, calls, their outputs, thoughts."""
    instructions: str | None = None
    """What the model is told first; for this response alone."""
    previous_response_id: str | None = None
    """The stored response that the conversation goes on from."""
    max_output_tokens: int | None = None
    """Tokens after which the answer ends; if it is not said, what the model's length leaves."""
    store: bool = True
    """Keep the response, so that it can be asked for and gone on from, where the server keeps
    any."""
    tools: Annotated[list[dict[str, Any]], WithJsonSchema(shapes.RESPONSE_TOOLS)] = Field([])
    """Functions that the model may ask the client to call."""
    tool_choice: Annotated[Any, WithJsonSchema(shapes.RESPONSE_TOOL_CHOICE)] = None
    """Whether tools are called: as the model likes (auto, if it is not said), not at all, at least
    one, or this one."""
    parallel_tool_calls: bool = True
    """Whether one answer may have several calls."""
    text: TextBody | None = None
    """What the words of the answer look like."""
    reasoning: ReasoningBody | None = None
    """How much the model thinks."""
    thinking_token_budget: int | None = None
    """Tokens after which the model's thoughts are ended for it; if it is not said, they may be as
    long as the answer."""
    background: bool = False
    """Answer at once, that it is queued; ask for the response by its id later. Needs `store`."""
    truncation: Literal["auto", "disabled"] = "disabled"
    """What becomes of an input that is too long: its first turns are left out, or it is refused."""
    include: list[Literal["message.output_text.logprobs"]] = Field([])
    """What else to say: the logprobs of the answer's words."""
    top_logprobs: int = 0
    """Also say so many alternatives for each token; needs `include`."""
    max_tool_calls: int | None = None
    """Calls of tools that the server runs itself, at most; it has none."""
    metadata: dict[str, str] = Field({})
    """Labels, at most 16, which the response repeats."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """More variables for the model's chat template, such as `enable_thinking`."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredResponse:
    """A response that is kept."""

    body: Mapping[str, Any]
    """As it was answered."""
    turns: tuple[ChatMessage, ...]
    """The conversation up to its end, without instructions: they hold for one response. Empty if it
    was not completed."""
    input_items: tuple[Mapping[str, Any], ...] = ()
    """Its own input."""
    events: tuple[bytes, ...] = ()
    """As they were told, if it was asked for as a stream in the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCall(Call):
    """A parsed body."""

    response_id: str
    said: Mapping[str, Any]
    """What the response says of its request."""
    turns: tuple[ChatMessage, ...]
    """The conversation that is answered, without instructions."""
    input_items: tuple[Mapping[str, Any], ...]
    """Those of its own input."""
    stores: bool
    in_background: bool
    """Nobody waits for it: whoever asked comes back."""


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
    _check(body, model.limits)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    turns = [*_turns_before(body, find), *input_turns(body.input)]
    assert body.input is not None
    prompt = _prompt(body, turns, model, max_model_len)
    response_id = f"resp_{secrets.token_hex(16)}"
    input_items = listed_items(body.input, response_id)
    _check_writable("input", input_items)
    request = model.build(
        prompt.token_ids,
        sampling_options(
            body,
            max_tokens=body.max_output_tokens,
            max_tokens_field="max_output_tokens",
            num_logprobs=_num_logprobs(body),
            logprobs_field="top_logprobs",
            shown_tokens=prompt.parsing.shown_tokens if prompt.parsing else frozenset(),
            grammar=prompt.grammar,
        ),
        max_model_len,
        dice=dice,
        request_id=request_id,
        prompt_field="input",
    )
    stores = keeps and body.store
    _check_store(body, keeps=keeps)
    return ResponseCall(
        request_id=request_id,
        model=model.name,
        requests=(request,),
        streams=body.streams,
        include_usage=False,
        wants_logprobs=request.sampling.num_logprobs is not None,
        wants_token_ids=False,
        parsing=prompt.parsing,
        response_id=response_id,
        said=_said(body, request, stores=stores),
        turns=tuple(turns),
        input_items=input_items,
        stores=stores,
        in_background=body.background,
    )


def _check(body: ResponsesBody, limits: RequestLimits) -> None:
    """Raises RequestError."""
    check_stream(body)
    if body.stream_options and body.stream_options.continuous_usage_stats:
        field = "stream_options.continuous_usage_stats"
        raise invalid(field, f"{field} is true; a response says its usage at its end")
    check_metadata(body.metadata)
    checked_json("chat_template_kwargs", body.chat_template_kwargs, MAX_ARGUMENTS_BYTES)
    # Calls of tools that the server runs itself, and there are none: any number is kept to.
    check_known_range("max_tool_calls", body.max_tool_calls, limits)
    check_known_range("thinking_token_budget", body.thinking_token_budget, limits)


def _turns_before(body: ResponsesBody, find: FindResponse) -> tuple[ChatMessage, ...]:
    if not body.previous_response_id:
        return ()
    try:
        return find(body.previous_response_id).turns
    except RequestError as error:
        field = "previous_response_id"
        raise RequestError(error.fault, error.message, field=field) from error


def _prompt(
    body: ResponsesBody, turns: list[ChatMessage], model: Model, max_model_len: int
) -> ChatPrompt:
    """Of all turns, or, if that is asked for, of as many of the last as fit."""
    grammar = _grammar(body)

    def make_prompt(turns: Sequence[ChatMessage]) -> ChatPrompt:
        return model.chat(_conversation(body, turns, model), max_model_len, grammar)

    if body.truncation == "disabled":
        return make_prompt(turns)
    return fitting_prompt(turns, make_prompt, max_model_len - max(1, body.max_output_tokens or 1))


def _num_logprobs(body: ResponsesBody) -> int | None:
    if body.include:
        return body.top_logprobs
    if body.top_logprobs:
        raise invalid(
            "top_logprobs",
            f"top_logprobs is {body.top_logprobs}; it needs include to be {json.dumps([LOGPROBS])}",
        )
    return None


def _check_store(body: ResponsesBody, *, keeps: bool) -> None:
    """Who does not ask for it goes without where nothing is kept."""
    if not keeps and body.store and "store" in body.model_fields_set:
        raise invalid("store", "store is true; this server keeps no responses; leave it out")
    if not body.background:
        return
    if not keeps:
        raise invalid(
            "background",
            "background is true; this server keeps no responses, so nobody could come back to it",
        )
    if not body.store:
        raise invalid("background", "background is true; it needs store to be true")


def _conversation(body: ResponsesBody, turns: Sequence[ChatMessage], model: Model) -> Conversation:
    first = []
    if body.instructions:
        first = [ChatMessage("system", checked_text("instructions", body.instructions))]
    effort = body.reasoning.effort if body.reasoning else None
    arguments = {
        **effort_arguments("reasoning.effort", effort, model),
        **body.chat_template_kwargs,
    }
    check_results(turns)
    return Conversation(
        messages=[*first, *turns],
        messages_field="input",
        tools=response_tools(body.tools),
        tool_choice=response_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        strict_by_default=True,
        template_arguments=arguments,
        max_thought_tokens=body.thinking_token_budget,
        max_thought_tokens_field="thinking_token_budget",
    )


def _grammar(body: ResponsesBody) -> GrammarSpec | None:
    """What `text` or vLLM's fields ask for, but not both."""
    said = body.text.format if body.text else None
    formatted = format_grammar("text.format", said, beside_type=True)
    asked = requested_grammar(body)
    if asked is not None and formatted is not None:
        raise invalid(
            asked.field,
            f"{asked.field} and {formatted.field} are both given; there may be at most one of them",
        )
    return asked or formatted


def _said(body: ResponsesBody, request: GenerateRequest, *, stores: bool) -> dict[str, Any]:
    """The request, as the response repeats it."""
    said: dict[str, Any] = {
        "background": body.background,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": _said_reasoning(body.reasoning),
        "service_tier": "default",
        "store": stores,
        "temperature": request.sampling.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [{"parameters": None, "strict": None} | tool for tool in body.tools],
        "top_logprobs": body.top_logprobs,
        "top_p": request.sampling.top_p,
        "truncation": body.truncation,
    }
    for name in ("user", "prompt_cache_key", "safety_identifier"):
        if (label := getattr(body, name)) is not None:
            said[name] = label
    for name, value in said.items():
        _check_writable(name, value)
    return said


def _said_reasoning(body: ReasoningBody | None) -> dict[str, Any]:
    if body is None:
        return {"effort": None, "summary": None}
    return {"effort": body.effort, "summary": body.summary or body.generate_summary}


def _check_writable(field: str, value: Any) -> None:
    """JSON that was read cannot always be written: half a surrogate pair, 1e999."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise invalid(field, f"{field} has a lone surrogate; it must be Unicode") from error
    except ValueError as error:
        raise invalid(field, f"{field} has a number that is too large") from error
