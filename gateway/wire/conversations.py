"""Conversations, with tools, thoughts, calls and their results."""

import json
from collections.abc import Mapping
from typing import Any

from gateway.conversation import (
    MAX_ARGUMENTS_BYTES,
    ChatMessage,
    Conversation,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
    check_num_calls,
    check_results,
    checked_json,
    checked_role,
)
from gateway.errors import invalid, quote
from gateway.ranges import check_range
from protos.quire.v1 import inference_pb2

_MAX_THOUGHT_TOKENS = "chat.max_thought_tokens"
_MODES: Mapping[int, ToolMode] = {
    inference_pb2.TOOL_CHOICE_MODE_UNSPECIFIED: ToolMode.AUTO,
    inference_pb2.TOOL_CHOICE_MODE_NONE: ToolMode.NONE,
    inference_pb2.TOOL_CHOICE_MODE_AUTO: ToolMode.AUTO,
    inference_pb2.TOOL_CHOICE_MODE_REQUIRED: ToolMode.REQUIRED,
    inference_pb2.TOOL_CHOICE_MODE_NAMED: ToolMode.NAMED,
}


def conversation_of(chat: inference_pb2.ChatPrompt) -> Conversation:
    """What the model is to go on with. Raises RequestError."""
    if not chat.messages:
        raise invalid("chat.messages", "chat.messages has 0 entries; it must have at least 1")
    begins = not chat.continue_final_message
    if chat.HasField("add_generation_prompt"):
        begins = chat.add_generation_prompt
        if begins and chat.continue_final_message:
            raise invalid(
                "chat.continue_final_message",
                "chat.continue_final_message is true and chat.add_generation_prompt is true; "
                "an answer can do only one of the two",
            )
    parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    messages = [_message(index, message) for index, message in enumerate(chat.messages)]
    check_results(messages)
    return Conversation(
        messages=messages,
        messages_field="chat",
        tools=[_tool(index, tool) for index, tool in enumerate(chat.tools)],
        tool_choice=_tool_choice(chat.tool_choice),
        parallel_tool_calls=parallel,
        template_arguments=_template_arguments(chat.chat_template_kwargs),
        add_generation_prompt=begins,
        continue_final_message=chat.continue_final_message,
        max_thought_tokens=_max_thought_tokens(chat),
        max_thought_tokens_field=_MAX_THOUGHT_TOKENS,
    )


def _max_thought_tokens(chat: inference_pb2.ChatPrompt) -> int | None:
    if not chat.HasField("max_thought_tokens"):
        return None
    check_range(_MAX_THOUGHT_TOKENS, chat.max_thought_tokens, 1)
    return chat.max_thought_tokens


def _message(index: int, message: inference_pb2.ChatMessage) -> ChatMessage:
    field = f"chat.messages[{index}]"
    role = checked_role(f"{field}.role", message.role)
    _only(role, "assistant", f"{field}.tool_calls", bool(message.tool_calls))
    _only(role, "assistant", f"{field}.reasoning", bool(message.reasoning))
    _only(role, "tool", f"{field}.tool_call_id", bool(message.tool_call_id))
    if role == "tool" and not message.tool_call_id:
        raise invalid(f"{field}.tool_call_id", f"{field}.tool_call_id is missing")
    check_num_calls(f"{field}.tool_calls", len(message.tool_calls))
    return ChatMessage(
        role=role,
        content=message.content,
        name=message.name if message.HasField("name") else None,
        reasoning=message.reasoning if message.HasField("reasoning") else None,
        tool_calls=tuple(
            _call(f"{field}.tool_calls[{number}]", call)
            for number, call in enumerate(message.tool_calls)
        ),
        tool_call_id=message.tool_call_id if message.HasField("tool_call_id") else None,
        tool_call_id_field=f"{field}.tool_call_id",
    )


def _only(role: str, meant: str, field: str, is_there: bool) -> None:
    if is_there and role != meant:
        raise invalid(field, f"{field} is there; only a message of role {meant} has it")


def _call(field: str, call: inference_pb2.ToolCall) -> ToolCall:
    for name in ("id", "name"):
        if not getattr(call, name):
            raise invalid(f"{field}.{name}", f"{field}.{name} is missing")
    return ToolCall(call.id, call.name, call.arguments)


def _tool(index: int, tool: inference_pb2.Tool) -> Tool:
    parameters = None
    if tool.parameters:
        parameters = _object(f"chat.tools[{index}].parameters", tool.parameters)
    return Tool(
        name=tool.name,
        description=tool.description if tool.HasField("description") else None,
        parameters=parameters,
        strict=tool.strict if tool.HasField("strict") else None,
        field=f"chat.tools[{index}]",
    )


def _tool_choice(choice: inference_pb2.ToolChoice) -> ToolChoice:
    mode = _MODES.get(choice.mode)
    if mode is None:
        raise invalid(
            "chat.tool_choice.mode",
            f"chat.tool_choice.mode is {choice.mode}; it must be one of {sorted(_MODES)}",
        )
    if bool(choice.name) != (mode is ToolMode.NAMED):
        raise invalid(
            "chat.tool_choice.name",
            f"chat.tool_choice.name is {quote(choice.name)}; "
            "mode NAMED has the name of a tool, and no other mode has one",
        )
    return ToolChoice(mode, choice.name or None)


def _template_arguments(text: str) -> dict[str, Any]:
    if not text:
        return {}
    field = "chat.chat_template_kwargs"
    arguments = _object(field, text)
    checked_json(field, arguments, MAX_ARGUMENTS_BYTES)
    return arguments


def _object(field: str, text: str) -> dict[str, Any]:
    """What a field says as JSON. Raises RequestError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(field, f"{field} is {quote(text)}; it must be JSON") from error
    if not isinstance(value, dict):
        raise invalid(field, f"{field} is {quote(value)}; it must be a JSON object")
    return value
