"""Anthropic's messages as a conversation in no dialect.

Blocks of one user's turn may be several turns of ours: each result of a tool is one. A last turn of
the assistant's is left open, so that the model goes on with it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.anthropic.schema import (
    REFUSED_IN_THINKING,
    REFUSED_IN_TOOL,
    ROLES,
    CountTokensBody,
    MessageBody,
    ThinkingBody,
    ToolBody,
    ToolChoiceBody,
)
from gateway.body import checked_text, refuse_unserved
from gateway.conversation import (
    ChatMessage,
    Conversation,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
    check_results,
)
from gateway.errors import invalid, one_of, quote, wrong

_MODES = {
    "auto": ToolMode.AUTO,
    "any": ToolMode.REQUIRED,
    "tool": ToolMode.NAMED,
    "none": ToolMode.NONE,
}

_THINKS = {"enabled": True, "adaptive": True, "disabled": False}


def conversation_of(body: CountTokensBody) -> Conversation:
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
        template_arguments=_template_arguments(body),
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
    )


def _turns(field: str, body: MessageBody) -> Iterator[ChatMessage]:
    match body.role:
        case "user":
            yield from _user_turns(f"{field}.content", body.content)
        case "assistant":
            yield _assistant_turn(f"{field}.content", body.content)
        case "system":
            yield ChatMessage("system", _text(f"{field}.content", body.content))
        case role:
            raise invalid(
                f"{field}.role",
                f"{field}.role is {quote(role)}; it must be " + one_of(ROLES),
            )


def _user_turns(field: str, content: str | Sequence[Mapping[str, Any]]) -> Iterator[ChatMessage]:
    if isinstance(content, str):
        yield ChatMessage("user", checked_text(field, content))
        return
    words: list[str] = []
    for index, block in enumerate(content):
        where = f"{field}[{index}]"
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
    refuse_unserved(body, REFUSED_IN_TOOL, prefix=f"{field}.")
    return Tool(body.name, body.description, body.input_schema, body.strict, field)


def _tool_choice(body: ToolChoiceBody | None) -> ToolChoice:
    if body is None:
        return ToolChoice(ToolMode.AUTO)
    mode = _MODES.get(body.type)
    if mode is None:
        raise invalid(
            "tool_choice.type",
            f"tool_choice.type is {quote(body.type)}; it must be {one_of(_MODES)}",
        )
    return ToolChoice(mode, body.name if mode is ToolMode.NAMED else None)


def _template_arguments(body: CountTokensBody) -> Mapping[str, Any]:
    """The variables by which templates of models that can be told are told."""
    arguments: dict[str, Any] = {}
    if body.thinking is not None:
        arguments["enable_thinking"] = _thinks(body.thinking)
    if body.output_config is not None and body.output_config.effort is not None:
        arguments["reasoning_effort"] = body.output_config.effort
    return arguments


def _thinks(thinking: ThinkingBody) -> bool:
    if thinking.type not in _THINKS:
        raise invalid(
            "thinking.type",
            f"thinking.type is {quote(thinking.type)}; it must be {one_of(_THINKS)}",
        )
    refuse_unserved(thinking, REFUSED_IN_THINKING, prefix="thinking.")
    return _THINKS[thinking.type]


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
    return _string(field, block, "text")


def _string(field: str, block: Mapping[str, Any], name: str) -> str:
    value = block.get(name)
    where = f"{field}.{name}"
    if not isinstance(value, str):
        raise wrong(where, value, "a string")
    return checked_text(where, value)


def _not_served(field: str, kind: Any, served: str) -> Exception:
    where = f"{field}.type"
    return invalid(where, f"{where} is {quote(kind)}; this server accepts only {served}")
