"""A chat body's messages, as turns of a conversation."""

from collections.abc import Mapping
from typing import Any

from gateway.body import checked_text, refuse_extra, refuse_unknown
from gateway.conversation import ChatMessage, ToolCall, check_num_calls, checked_role
from gateway.errors import invalid, missing, quote, wrong
from gateway.openai.schema import MessageBody

_UNSERVED: dict[str, tuple[Any, ...]] = {"function_call": (), "audio": ()}
# What answers have, here or from other servers and through other libraries, and clients send back;
# and hints about caching. It changes nothing.
_UNREAD = (
    *("annotations", "parsed", "provider_specific_fields", "reasoning_details", "thinking_blocks"),
    "cache_control",
)
_IN_CALL = ("id", "type", "function", "index", "provider_specific_fields")
_IN_CALLED = ("name", "arguments", "parsed_arguments", "provider_specific_fields")
_IN_PART = ("type", "text", "annotations", "cache_control", "prompt_cache_breakpoint")


def chat_message(index: int, body: MessageBody) -> ChatMessage:
    """One turn. Raises RequestError."""
    field = f"messages[{index}]"
    role = checked_role(f"{field}.role", body.role)
    refuse_extra(body, f"{field}.", _UNSERVED, _UNREAD)
    reasoning = body.reasoning_content if body.reasoning is None else body.reasoning
    _only(role, "assistant", f"{field}.tool_calls", body.tool_calls)
    _only(role, "assistant", f"{field}.reasoning", reasoning)
    _only(role, "assistant", f"{field}.refusal", body.refusal)
    _only(role, "tool", f"{field}.tool_call_id", body.tool_call_id)
    if role == "tool" and body.tool_call_id is None:
        raise missing(f"{field}.tool_call_id")
    calls = body.tool_calls or []
    check_num_calls(f"{field}.tool_calls", len(calls))
    return ChatMessage(
        role=role,
        content=_said(field, body, role),
        name=_text(f"{field}.name", body.name),
        reasoning=_text(f"{field}.reasoning", reasoning),
        tool_calls=tuple(
            _call(f"{field}.tool_calls[{number}]", call) for number, call in enumerate(calls)
        ),
        tool_call_id=_text(f"{field}.tool_call_id", body.tool_call_id),
        tool_call_id_field=f"{field}.tool_call_id",
    )


def _said(field: str, body: MessageBody, role: str) -> str:
    if body.content is None and body.refusal is not None:
        return checked_text(f"{field}.refusal", body.refusal)
    return _content(f"{field}.content", body.content, role)


def _only(role: str, meant: str, field: str, value: Any) -> None:
    if value and role != meant:
        raise invalid(field, f"{field} is there; only a message of role {meant} has it")


def _text(field: str, value: str | None) -> str | None:
    return None if value is None else checked_text(field, value)


def _call(field: str, call: Any) -> ToolCall:
    if not isinstance(call, Mapping):
        raise wrong(field, call, "an object")
    if call.get("type", "function") != "function":
        raise invalid(
            f"{field}.type",
            f"{field}.type is {quote(call['type'])}; this server has only functions",
        )
    refuse_unknown(call, _IN_CALL, f"{field}.")
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise wrong(f"{field}.function", function, "an object")
    refuse_unknown(function, _IN_CALLED, f"{field}.function.")
    texts = []
    for name, value in (
        ("id", call.get("id")),
        ("function.name", function.get("name")),
        ("function.arguments", function.get("arguments", "")),
    ):
        if not isinstance(value, str):
            raise wrong(f"{field}.{name}", value, "a string")
        texts.append(checked_text(f"{field}.{name}", value))
    return ToolCall(*texts)


def _content(field: str, content: Any, role: str) -> str:
    """Text, or parts of type text, which are joined by line breaks."""
    if isinstance(content, str):
        return checked_text(field, content)
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list):
        raise wrong(field, content, "a string or an array of text parts")
    return "\n".join(_text_part(f"{field}[{index}]", part) for index, part in enumerate(content))


def _text_part(field: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise invalid(
            f"{field}.type", f"{field}.type is {quote(kind)}; this server accepts only text parts"
        )
    refuse_unknown(part, _IN_PART, f"{field}.")
    text = part.get("text")
    if not isinstance(text, str):
        raise wrong(f"{field}.text", text, "a string")
    return checked_text(f"{field}.text", text)
