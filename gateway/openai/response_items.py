"""The items of a response's input and output, as turns of a conversation.

Thoughts, words and calls that follow each other in an input are one turn of the assistant's, as
they were when it wrote them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.blocks import Block, BlockKind
from gateway.body import checked_text, refuse_unknown
from gateway.conversation import ROLES, ChatMessage, Tool, ToolCall, ToolChoice, checked_role
from gateway.errors import invalid, missing, quote, wrong
from gateway.openai.tools import read_tool_choice

_ROLES = {name: role for name, role in ROLES.items() if role != "tool"}
"""Who speaks in a message; what a tool says is an item of its own."""
_SERVED = "message, function_call, function_call_output, reasoning"
_TEXTS = ("input_text", "output_text", "text")
# What may be said: of an item of each type, a part of text, a tool. Some of it only comes back from
# an answer, and changes nothing.
_IN_ITEM: Mapping[str, Sequence[str]] = {
    "message": ("type", "role", "content", "id", "status", "phase"),
    "function_call": (
        *("type", "call_id", "name", "arguments", "id", "status", "created_by"),
        "parsed_arguments",
    ),
    "function_call_output": ("type", "call_id", "output", "id", "status", "created_by", "name"),
    "reasoning": ("type", "summary", "content", "id", "status", "encrypted_content"),
}
_IN_THOUGHTS = {
    # of a reasoning item: what its parts are called
    "content": "reasoning_text",
    "summary": "summary_text",
}
_IN_TEXT = ("type", "text", "annotations", "logprobs", "parsed", "prompt_cache_breakpoint")
_IN_TOOL = ("type", "name", "description", "parameters", "strict", "cache_control")
_UNSERVED: Mapping[str, Sequence[Any]] = {
    # the values that ask for nothing
    "allowed_callers": (["direct"],),
    "caller": ({"type": "direct"},),
    "defer_loading": (False,),
    "namespace": ("",),
    "output_schema": (),
}


@dataclass(slots=True)
class _Turn:
    """The assistant's, while its items come."""

    words: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def message(self, between: str = "\n") -> ChatMessage:
        return ChatMessage(
            "assistant",
            between.join(self.words),
            reasoning=between.join(self.thoughts) or None,
            tool_calls=tuple(self.calls),
        )


def input_turns(said: str | Sequence[Mapping[str, Any]] | None) -> list[ChatMessage]:
    """The turns of `input`. Raises RequestError."""
    if not said:
        raise wrong("input", said, "a text or items")
    if isinstance(said, str):
        return [ChatMessage("user", checked_text("input", said))]
    turns: list[ChatMessage] = []
    open_turn: _Turn | None = None
    ids: set[str] = set()
    for index, item in enumerate(said):
        where = f"input[{index}]"
        _check_id(where, item, ids)
        if (known := _IN_ITEM.get(item.get("type", "message"))) is not None:
            refuse_unknown(item, known, f"{where}.", _UNSERVED)
        if not _is_assistants(item):
            if open_turn is not None:
                turns.append(open_turn.message())
                open_turn = None
            turns.append(_other_turn(where, item))
            continue
        if open_turn is not None and _begins_anew(item, open_turn):
            turns.append(open_turn.message())
            open_turn = None
        open_turn = open_turn or _Turn()
        _add(where, item, open_turn)
    if open_turn is not None:
        turns.append(open_turn.message())
    return turns


def output_turn(blocks: Iterable[Block]) -> ChatMessage:
    """What was answered, as a turn that may be gone on from."""
    turn = _Turn()
    for block in blocks:
        match block.kind:
            case BlockKind.WORDS:
                turn.words.append(block.text)
            case BlockKind.REASONING:
                turn.thoughts.append(block.text)
            case BlockKind.CALL:
                turn.calls.append(ToolCall(block.id, block.name, block.text))
    return turn.message(between="")


def listed_items(
    said: str | Sequence[Mapping[str, Any]], response_id: str
) -> tuple[Mapping[str, Any], ...]:
    """The items of `input`, which `input_turns` has read, as they are listed; those without an id
    get one."""
    if isinstance(said, str):
        said = [{"role": "user", "content": said}]
    name = response_id.removeprefix("resp_")
    return tuple(
        _listed(item, item.get("id") or f"item_{name}{index:04x}")
        for index, item in enumerate(said)
    )


def response_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Tool]:
    """The tools of a body. Raises RequestError; names and sizes are checked by `Model.chat`."""
    return [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools or ())]


def response_tool_choice(choice: Any) -> ToolChoice:
    """What the client wants of the tools. Raises RequestError."""
    return read_tool_choice(choice, _chosen_name)


def _chosen_name(choice: Mapping[str, Any]) -> str:
    refuse_unknown(choice, ("type", "name"), "tool_choice.")
    return _string("tool_choice", choice, "name")


def _listed(item: Mapping[str, Any], item_id: str) -> Mapping[str, Any]:
    head = {"id": item_id, "status": "completed"}
    match item.get("type", "message"):
        case "function_call":
            call = {name: item[name] for name in ("call_id", "name", "arguments")}
            return head | {"type": "function_call"} | call
        case "function_call_output":
            said = {"call_id": item["call_id"], "output": item["output"]}
            return head | {"type": "function_call_output"} | said
        case "reasoning":
            said = {
                name: [{"type": kind, "text": part["text"]} for part in item.get(name) or ()]
                for name, kind in _IN_THOUGHTS.items()
                if name == "summary" or item.get(name)
            }
            return head | {"type": "reasoning"} | said
        case _:
            kind = "output_text" if item["role"] == "assistant" else "input_text"
            content = _listed_content(kind, item["content"])
            return head | {"type": "message", "role": item["role"], "content": content}


def _listed_content(kind: str, content: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parts of text, of the one kind that a message of this role has."""
    parts = [{"text": content}] if isinstance(content, str) else content
    beside: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return [
        {"type": "refusal", "refusal": part["refusal"]}
        if part.get("type") == "refusal"
        else {"type": kind, "text": part["text"], **beside}
        for part in parts
    ]


def _check_id(where: str, item: Mapping[str, Any], ids: set[str]) -> None:
    """Raises RequestError for the id of an item before it, or none that could be one."""
    if item.get("id") in (None, ""):
        return
    item_id = _string(where, item, "id")
    if item_id in ids:
        raise invalid(f"{where}.id", f"{where}.id is {quote(item_id)}, like one before it")
    ids.add(item_id)


def _is_assistants(item: Mapping[str, Any]) -> bool:
    kind = item.get("type", "message")
    return kind in ("function_call", "reasoning") or (
        kind == "message" and item.get("role") == "assistant"
    )


def _begins_anew(item: Mapping[str, Any], turn: _Turn) -> bool:
    """Whether this cannot belong to the same turn: calls come last, thoughts first."""
    kind = item.get("type", "message")
    if kind == "reasoning":
        return bool(turn.words or turn.calls)
    return kind == "message" and bool(turn.calls)


def _add(where: str, item: Mapping[str, Any], turn: _Turn) -> None:
    match item.get("type", "message"):
        case "reasoning":
            turn.thoughts += _thoughts(where, item)
        case "function_call":
            name = _string(where, item, "name")
            arguments = _string(where, item, "arguments")
            turn.calls.append(ToolCall(_string(where, item, "call_id"), name, arguments))
        case _:
            turn.words.append(_text(f"{where}.content", item.get("content")))


def _other_turn(where: str, item: Mapping[str, Any]) -> ChatMessage:
    match item.get("type", "message"):
        case "message":
            role = checked_role(f"{where}.role", item.get("role"), _ROLES)
            return ChatMessage(role, _text(f"{where}.content", item.get("content")))
        case "function_call_output":
            return ChatMessage(
                "tool",
                _text(f"{where}.output", item.get("output")),
                tool_call_id=_string(where, item, "call_id"),
                tool_call_id_field=f"{where}.call_id",
            )
        case kind:
            raise invalid(
                f"{where}.type",
                f"{where}.type is {quote(kind)}; this server accepts only {_SERVED}",
            )


def _thoughts(where: str, item: Mapping[str, Any]) -> list[str]:
    """In full, or else their summary; both are read."""
    said: dict[str, list[str]] = {}
    for name, kind in _IN_THOUGHTS.items():
        parts = item.get(name)
        if not isinstance(parts, list | None):
            raise wrong(f"{where}.{name}", parts, "an array")
        said[name] = [
            _thought(f"{where}.{name}[{index}]", part, kind)
            for index, part in enumerate(parts or ())
        ]
    return said["content"] or said["summary"]


def _thought(where: str, part: Any, kind: str) -> str:
    text = _string(where, part, "text")
    refuse_unknown(part, ("type", "text"), f"{where}.")
    if part.get("type") not in (None, "text", kind):
        raise wrong(f"{where}.type", part["type"], quote(kind))
    return text


def _text(where: str, content: Any) -> str:
    """A string, or parts of text, which are joined by line breaks."""
    if isinstance(content, str):
        return checked_text(where, content)
    if not isinstance(content, list):
        raise wrong(where, content, "a string or an array of text parts")
    return "\n".join(_part(f"{where}[{index}]", part) for index, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "refusal":
        refuse_unknown(part, ("type", "refusal"), f"{where}.")
        return _string(where, part, "refusal")
    if kind not in _TEXTS:
        raise invalid(
            f"{where}.type", f"{where}.type is {quote(kind)}; this server accepts only text parts"
        )
    refuse_unknown(part, _IN_TEXT, f"{where}.")
    return _string(where, part, "text")


def _tool(where: str, tool: Mapping[str, Any]) -> Tool:
    if tool.get("type") is None:
        raise missing(f"{where}.type")
    if tool["type"] != "function":
        raise invalid(
            f"{where}.type",
            f"{where}.type is {quote(tool['type'])}; this server has only functions",
        )
    refuse_unknown(tool, _IN_TOOL, f"{where}.", _UNSERVED)
    description, parameters, strict = map(tool.get, ("description", "parameters", "strict"))
    if not isinstance(description, str | None):
        raise wrong(f"{where}.description", description, "a string")
    if not isinstance(parameters, Mapping | None):
        raise wrong(f"{where}.parameters", parameters, "an object")
    if not isinstance(strict, bool | None):
        raise wrong(f"{where}.strict", strict, "true or false")
    if description is not None:
        checked_text(f"{where}.description", description)
    return Tool(_string(where, tool, "name"), description, parameters, strict, where)


def _string(where: str, item: Any, name: str) -> str:
    value = item.get(name) if isinstance(item, Mapping) else None
    if not isinstance(value, str):
        raise wrong(f"{where}.{name}", value, "a string")
    return checked_text(f"{where}.{name}", value)
