"""Anthropic's messages as a conversation in no dialect.

Blocks of one user's turn may be several turns of ours: each result of a tool is one. A last turn of
the assistant's is left open, so that the model goes on with it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.anthropic.schema import (
    UNSERVED_IN_TOOL,
    CountTokensBody,
    MessageBody,
    ThinkingBody,
    ToolBody,
    ToolChoiceBody,
)
from gateway.body import checked_text, refuse_extra, refuse_unknown
from gateway.conversation import (
    ChatMessage,
    Conversation,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
    check_results,
)
from gateway.errors import invalid, missing, quote, wrong
from gateway.model import Model
from gateway.ranges import check_range
from gateway.thinking import effort_arguments, thinking_arguments

_MODES = {
    "auto": ToolMode.AUTO,
    "any": ToolMode.REQUIRED,
    "tool": ToolMode.NAMED,
    "none": ToolMode.NONE,
}

# What may be said of a block of each type. Citations and signatures come back from answers; with
# hints about caching they change nothing.
_IN_BLOCK: Mapping[str, Sequence[str]] = {
    "text": ("type", "text", "citations", "parsed_output", "cache_control"),
    "thinking": ("type", "thinking", "signature", "cache_control"),
    "tool_use": ("type", "id", "name", "input", "cache_control"),
    "tool_result": ("type", "tool_use_id", "content", "is_error", "cache_control"),
}
_UNSERVED_IN_BLOCK: Mapping[str, Sequence[Any]] = {
    # the values that ask for nothing
    "caller": ({"type": "direct"},),
    "toolset_name": (),
}
_BUDGET = "thinking.budget_tokens"


def conversation_of(body: CountTokensBody, model: Model) -> Conversation:
    """What the model is to go on with. Raises RequestError."""
    if not body.messages:
        raise invalid("messages", "messages has 0 entries; it must have at least 1")
    messages: list[ChatMessage] = []
    if body.system:
        messages.append(ChatMessage("system", _text("system", body.system)))
    for index, message in enumerate(body.messages):
        messages += _turns(f"messages[{index}]", message)
    check_results(messages)
    tools = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(body.tools or ())]
    goes_on = messages[-1].role == "assistant" and not messages[-1].tool_calls
    return Conversation(
        messages=messages,
        tools=tools,
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
        template_arguments=_template_arguments(body, model),
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
        max_thought_tokens=_max_thought_tokens(body.thinking),
        max_thought_tokens_field=_BUDGET,
    )


def _turns(field: str, body: MessageBody) -> Iterator[ChatMessage]:
    match body.role:
        case "user":
            yield from _user_turns(f"{field}.content", body.content)
        case "assistant":
            yield _assistant_turn(f"{field}.content", body.content)
        case _:
            yield ChatMessage("system", _text(f"{field}.content", body.content))


def _user_turns(field: str, content: str | Sequence[Mapping[str, Any]]) -> Iterator[ChatMessage]:
    if isinstance(content, str):
        yield ChatMessage("user", checked_text(field, content))
        return
    words: list[str] = []
    for index, block in enumerate(content):
        where = f"{field}[{index}]"
        _check_block(where, block)
        match block.get("type"):
            case "text":
                words.append(_string(where, block, "text"))
            case "tool_result":
                if words:
                    yield ChatMessage("user", "\n".join(words))
                    words = []
                yield _tool_result(where, block)
            case kind:
                raise _not_served(where, kind, "text, tool_result")
    if words or not content:
        yield ChatMessage("user", "\n".join(words))


def _tool_result(field: str, block: Mapping[str, Any]) -> ChatMessage:
    said = block.get("content")
    text = "" if said is None else _text(f"{field}.content", said)
    if block.get("is_error"):
        text = f"Error: {text}"  # templates know no failed calls
    return ChatMessage(
        "tool",
        text,
        tool_call_id=_string(field, block, "tool_use_id"),
        tool_call_id_field=f"{field}.tool_use_id",
    )


def _assistant_turn(field: str, content: str | Sequence[Mapping[str, Any]]) -> ChatMessage:
    if isinstance(content, str):
        return ChatMessage("assistant", checked_text(field, content))
    words: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(content):
        where = f"{field}[{index}]"
        _check_block(where, block)
        match block.get("type"):
            case "text":
                words.append(_string(where, block, "text"))
            case "thinking":
                thoughts.append(_string(where, block, "thinking"))
            case "tool_use":
                calls.append(_tool_use(where, block))
            case kind:
                raise _not_served(where, kind, "text, thinking, tool_use")
    return ChatMessage(
        "assistant",
        "\n".join(words),
        reasoning="\n".join(thoughts) or None,
        tool_calls=tuple(calls),
    )


def _tool_use(field: str, block: Mapping[str, Any]) -> ToolCall:
    arguments = block.get("input")
    if not isinstance(arguments, Mapping):
        raise invalid(
            f"{field}.input", f"{field}.input is {quote(arguments)}; it must be an object"
        )
    text = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(
        id=_string(field, block, "id"),
        name=_string(field, block, "name"),
        arguments=checked_text(f"{field}.input", text),
    )


def _tool(field: str, body: ToolBody) -> Tool:
    if body.type not in (None, "custom"):
        raise invalid(
            f"{field}.type",
            f"{field}.type is {quote(body.type)}; this server runs no tools of its own",
        )
    refuse_extra(body, f"{field}.", UNSERVED_IN_TOOL)
    return Tool(body.name, body.description, body.input_schema, body.strict, field)


def _tool_choice(body: ToolChoiceBody | None) -> ToolChoice:
    if body is None:
        return ToolChoice(ToolMode.AUTO)
    mode = _MODES[body.type]
    if mode is not ToolMode.NAMED:
        return ToolChoice(mode)
    if body.name is None:
        raise missing("tool_choice.name")
    return ToolChoice(mode, body.name)


def _template_arguments(body: CountTokensBody, model: Model) -> Mapping[str, Any]:
    """The variables by which templates of models that can be told are told."""
    effort = body.output_config.effort if body.output_config else None
    arguments = dict(effort_arguments("output_config.effort", effort, model))
    thinking = body.thinking
    if thinking is None or (thinking.type == "adaptive" and model.thoughts is None):
        return arguments
    thinks = thinking.type != "disabled"
    switch = thinking_arguments("thinking.type", thinking.type, model, thinks=thinks)
    return arguments | dict(switch)


def _max_thought_tokens(thinking: ThinkingBody | None) -> int | None:
    if thinking is None or thinking.type != "enabled":
        if thinking is not None and thinking.budget_tokens is not None:
            raise invalid(
                _BUDGET,
                f"{_BUDGET} is {thinking.budget_tokens}; it needs thinking.type to be enabled",
            )
        return None
    if thinking.budget_tokens is None:
        raise missing(_BUDGET)
    check_range(_BUDGET, thinking.budget_tokens, 1)
    return thinking.budget_tokens


def _text(field: str, content: Any) -> str:
    """A string, or text blocks, which are joined by line breaks."""
    if isinstance(content, str):
        return checked_text(field, content)
    if not isinstance(content, list):
        raise wrong(field, content, "a string or an array of text blocks")
    return "\n".join(_text_block(f"{field}[{index}]", block) for index, block in enumerate(content))


def _text_block(field: str, block: Any) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind != "text":
        raise _not_served(field, kind, "text")
    _check_block(field, block)
    return _string(field, block, "text")


def _check_block(field: str, block: Mapping[str, Any]) -> None:
    """Raises RequestError if it has fields that nobody reads."""
    if (known := _IN_BLOCK.get(block.get("type", ""))) is not None:
        refuse_unknown(block, known, f"{field}.", _UNSERVED_IN_BLOCK)


def _string(field: str, block: Mapping[str, Any], name: str) -> str:
    value = block.get(name)
    where = f"{field}.{name}"
    if not isinstance(value, str):
        raise wrong(where, value, "a string")
    return checked_text(where, value)


def _not_served(field: str, kind: Any, served: str) -> Exception:
    where = f"{field}.type"
    return invalid(where, f"{where} is {quote(kind)}; this server accepts only {served}")
