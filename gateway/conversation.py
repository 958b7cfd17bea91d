"""A conversation to go on with, in no dialect: turns, tools, and what the template is told.

Every chat endpoint turns its body into a `Conversation`; `Model.chat` turns that into a prompt and
the way the answer is to be read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import Any

from gateway.errors import invalid, one_of, quote, wrong
from gateway.limits import RequestLimits

MAX_DEPTH = 64
"""Of the parameters' JSON, objects and arrays within one another."""
MAX_ARGUMENTS_BYTES = 65_536
"""Of what a client tells the template."""

ROLES: Mapping[str, str] = {
    # what clients call who speaks: what templates call it
    "developer": "system",  # OpenAI's newer word for it
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
MAX_CALLS = 128
"""Of one turn."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made in an earlier turn."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn."""

    role: str
    """system, user, assistant or tool."""
    content: str
    name: str | None = None
    reasoning: str | None = None
    """What an assistant thought before it answered."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls an assistant made."""
    tool_call_id: str | None = None
    """The call whose result a tool's turn is."""
    tool_call_id_field: str = field(default="tool_call_id", compare=False)
    """Where the client said it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask the client to call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """A JSON schema of its arguments; None: not said, so any object."""
    strict: bool | None = None
    """Whether its arguments must be what the schema says."""
    field: str = field(default="tools", compare=False)
    """Where the client said it."""


class ToolMode(Enum):
    """Whether the model calls tools."""

    NONE = auto()
    """It does not, and is told of none."""
    AUTO = auto()
    """As it likes."""
    REQUIRED = auto()
    """It must call at least one."""
    NAMED = auto()
    """It must call one certain tool."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What the client said about calling."""

    mode: ToolMode
    name: str | None = None
    """Of the tool, for NAMED."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat endpoint asks the model to go on with; the field names are the client's."""

    messages: Sequence[ChatMessage]
    messages_field: str = "messages"
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice(ToolMode.AUTO)
    parallel_tool_calls: bool = True
    """Whether one answer may have several calls."""
    template_arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """`chat_template_kwargs`: more variables for the template."""
    add_generation_prompt: bool = True
    """Begin the assistant's turn."""
    continue_final_message: bool = False
    """Leave the last turn open, so that the model goes on with it."""
    strict_by_default: bool = False
    """Whether a tool is strict, if that can be, where nothing is said of it."""
    max_thought_tokens: int | None = None
    """After so many tokens of thoughts the answer begins; None: they may be as long as it."""
    max_thought_tokens_field: str = "max_thought_tokens"


def checked_tools(
    tools: Sequence[Tool], choice: ToolChoice, limits: RequestLimits, field: str = "tools"
) -> None:
    """Raises RequestError naming what is wrong with the tools or the choice among them."""
    if len(tools) > limits.tools:
        raise invalid(
            field, f"{field} has {len(tools)} entries; it must have at most {limits.tools}"
        )
    names: set[str] = set()
    num_bytes = 0
    for index, tool in enumerate(tools):
        where = f"{field}[{index}]"
        if not _TOOL_NAME.fullmatch(tool.name):
            raise invalid(
                where,
                f"{where} has the name {quote(tool.name)}; "
                "it must be 1 to 64 letters, digits, '_' or '-'",
            )
        if tool.name in names:
            raise invalid(where, f"{where} has the name {quote(tool.name)}, like one before it")
        names.add(tool.name)
        num_bytes += _tool_bytes(where, tool, limits)
    if num_bytes > limits.tools_bytes:
        raise invalid(
            field, f"{field} has {num_bytes} bytes; it must have at most {limits.tools_bytes}"
        )
    if choice.mode in (ToolMode.REQUIRED, ToolMode.NAMED) and not tools:
        raise invalid("tool_choice", f"tool_choice asks for a call, and {field} has 0 entries")
    if choice.mode is ToolMode.NAMED and choice.name not in names:
        raise invalid(
            "tool_choice", f"tool_choice names {quote(choice.name)}, which is not in {field}"
        )


def checked_role(field: str, said: Any, roles: Mapping[str, str] = ROLES) -> str:
    """Who speaks, in the templates' words. Raises RequestError."""
    role = roles.get(said) if isinstance(said, str) else None
    if role is None:
        raise wrong(field, said, one_of(roles))
    return role


def check_num_calls(field: str, num_calls: int) -> None:
    """Raises RequestError for too many in one turn."""
    if num_calls > MAX_CALLS:
        raise invalid(field, f"{field} has {num_calls} entries; it must have at most {MAX_CALLS}")


def check_results(messages: Iterable[ChatMessage]) -> None:
    """Raises RequestError if a turn is the result of a call that no turn before it made."""
    made: set[str] = set()
    for message in messages:
        made |= {call.id for call in message.tool_calls}
        if message.tool_call_id is not None and message.tool_call_id not in made:
            where = message.tool_call_id_field
            raise invalid(
                where, f"{where} is {quote(message.tool_call_id)}; no call before it has that id"
            )


def checked_json(field: str, value: Any, max_bytes: int) -> int:
    """Its size as JSON. Raises RequestError if it is larger, nested deeply, or not Unicode."""
    _check_depth(field, value, MAX_DEPTH)
    try:
        num_bytes = len(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise invalid(field, f"{field} has a lone surrogate; it must be Unicode") from error
    if num_bytes > max_bytes:
        raise invalid(field, f"{field} has {num_bytes} bytes; it must have at most {max_bytes}")
    return num_bytes


def _check_depth(field: str, value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise invalid(
            field, f"{field} is nested more than {MAX_DEPTH} deep; it must be at most {MAX_DEPTH}"
        )
    for inner in value.values() if isinstance(value, dict) else value:
        _check_depth(field, inner, left - 1)


def _tool_bytes(where: str, tool: Tool, limits: RequestLimits) -> int:
    described = len(tool.description or "")
    if described > limits.tool_description:
        raise invalid(
            where,
            f"{where} has a description of {described} characters; "
            f"it must have at most {limits.tool_description}",
        )
    if tool.parameters is None:
        return described
    said = tool.parameters.get("type", "object")
    if said != "object":
        raise invalid(where, f'{where} has parameters of type {quote(said)}; it must be "object"')
    return described + checked_json(f"{where}.parameters", tool.parameters, limits.tool_bytes)
