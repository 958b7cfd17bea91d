"""Conversations in OpenAI's words, as messages of `InferenceService`.

What is wrong raises ValueError, before anything is sent; ranges are the router's to check.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from protos.quire.v1 import inference_pb2
from quire.prompts import Chat

_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning")
_ALIASES = {"reasoning_content": "reasoning"}
_TOOL_KEYS = ("name", "description", "parameters", "strict")
_NOTHING: tuple[Any, ...] = (None, [], {})
"""Fields of an answer that say nothing may stay in it when it goes back."""

_MODES = {
    "none": inference_pb2.TOOL_CHOICE_MODE_NONE,
    "auto": inference_pb2.TOOL_CHOICE_MODE_AUTO,
    "required": inference_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def chat_prompt(chat: Chat) -> inference_pb2.ChatPrompt:
    """Raises ValueError naming the field."""
    return inference_pb2.ChatPrompt(
        messages=[_message(f"messages[{i}]", said) for i, said in enumerate(chat.messages)],
        tools=[_tool(f"tools[{i}]", tool) for i, tool in enumerate(chat.tools)],
        tool_choice=_tool_choice(chat.tool_choice),
        parallel_tool_calls=chat.parallel_tool_calls,
        chat_template_kwargs=(
            json.dumps(dict(chat.chat_template_kwargs)) if chat.chat_template_kwargs else ""
        ),
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        max_thought_tokens=_max_thought_tokens(chat.max_thought_tokens),
    )


def _max_thought_tokens(said: object) -> int | None:
    if said is None:
        return None
    if not isinstance(said, int) or isinstance(said, bool) or not 1 <= said < 1 << 32:
        raise _wrong("max_thought_tokens", said, f"1 to {(1 << 32) - 1}")
    return said


def _message(field: str, said: object) -> inference_pb2.ChatMessage:
    known = _known(field, said, _MESSAGE_KEYS)
    calls = known.get("tool_calls") or []
    if not isinstance(calls, Sequence):
        raise _wrong(f"{field}.tool_calls", calls, "a list")
    return inference_pb2.ChatMessage(
        role=_text(f"{field}.role", known.get("role")),
        content=_content(f"{field}.content", known.get("content")),
        name=_optional_text(f"{field}.name", known.get("name")),
        reasoning=_optional_text(f"{field}.reasoning", known.get("reasoning")),
        tool_calls=[_call(f"{field}.tool_calls[{i}]", call) for i, call in enumerate(calls)],
        tool_call_id=_optional_text(f"{field}.tool_call_id", known.get("tool_call_id")),
    )


def _content(field: str, content: object) -> str:
    """A text, or parts of type text, which are joined by line breaks."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _wrong(field, content, "a text, or a list of parts of type text")
    texts = []
    for index, part in enumerate(content):
        if not (isinstance(part, Mapping) and part.get("type") == "text"):
            raise _wrong(f"{field}[{index}]", part, "a part of type text")
        texts.append(_text(f"{field}[{index}].text", part.get("text")))
    return "\n".join(texts)


def _call(field: str, call: object) -> inference_pb2.ToolCall:
    function = _function(field, call)
    assert isinstance(call, Mapping)
    return inference_pb2.ToolCall(
        id=_text(f"{field}.id", call.get("id")),
        name=_text(f"{field}.function.name", function.get("name")),
        arguments=_text(f"{field}.function.arguments", function.get("arguments", "")),
    )


def _tool(field: str, tool: object) -> inference_pb2.Tool:
    function = _known(f"{field}.function", _function(field, tool), _TOOL_KEYS)
    parameters, strict = function.get("parameters"), function.get("strict")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise _wrong(f"{field}.function.parameters", parameters, "a JSON schema")
    if strict is not None and not isinstance(strict, bool):
        raise _wrong(f"{field}.function.strict", strict, "True or False")
    return inference_pb2.Tool(
        name=_text(f"{field}.function.name", function.get("name")),
        description=_optional_text(f"{field}.function.description", function.get("description")),
        parameters="" if parameters is None else json.dumps(dict(parameters)),
        strict=strict,
    )


def _tool_choice(choice: object) -> inference_pb2.ToolChoice:
    if isinstance(choice, str) and choice in _MODES:
        return inference_pb2.ToolChoice(mode=_MODES[choice])
    if not isinstance(choice, Mapping):
        raise _wrong("tool_choice", choice, f"one of {json.dumps(list(_MODES))}, or a function")
    name = _text("tool_choice.function.name", _function("tool_choice", choice).get("name"))
    return inference_pb2.ToolChoice(mode=inference_pb2.TOOL_CHOICE_MODE_NAMED, name=name)


def _function(field: str, said: object) -> Mapping[str, Any]:
    """Of {"type": "function", "function": {...}}."""
    if not isinstance(said, Mapping):
        raise _wrong(field, said, "a dict")
    if said.get("type", "function") != "function":
        raise _wrong(f"{field}.type", said["type"], '"function"')
    function = said.get("function")
    if not isinstance(function, Mapping):
        raise _wrong(f"{field}.function", function, "a dict")
    return function


def _known(field: str, said: object, keys: Sequence[str]) -> dict[str, Any]:
    """The fields that say something, by their first names."""
    if not isinstance(said, Mapping):
        raise _wrong(field, said, "a dict")
    known: dict[str, Any] = {}
    for name, value in said.items():
        key = str(_ALIASES.get(name, name))
        if key in keys:
            known[key] = value if value is not None else known.get(key)
        elif value not in _NOTHING:
            raise ValueError(f"{field}.{name} is not supported; there are {', '.join(keys)}")
    return known


def _optional_text(field: str, value: object) -> str | None:
    return None if value is None else _text(field, value)


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(field, value, "a text")
    return value


def _wrong(field: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{field} is {value!r:.60}; it must be {expected}")
