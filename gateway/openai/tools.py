"""A chat body's tools, and the choice among them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.body import checked_text, refuse_unknown
from gateway.conversation import Tool, ToolChoice, ToolMode
from gateway.errors import invalid, missing, one_of, quote, wrong

_IN_TOOL = ("type", "function", "cache_control")
_IN_FUNCTION = ("name", "description", "parameters", "strict")
_MODES = {"none": ToolMode.NONE, "auto": ToolMode.AUTO, "required": ToolMode.REQUIRED}


def chat_tools(tools: Sequence[Any] | None) -> list[Tool]:
    """The tools. Raises RequestError; names and sizes are checked by `Model.chat`."""
    return [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools or ())]


def chat_tool_choice(choice: Any) -> ToolChoice:
    """What the client wants of the tools. Raises RequestError."""
    return read_tool_choice(choice, _chosen_name)


def read_tool_choice(choice: Any, name_of: Callable[[Mapping[str, Any]], str]) -> ToolChoice:
    """A mode, or the object that names a function: chats and responses differ in where it has the
    name. Raises RequestError."""
    if choice is None:
        return ToolChoice(ToolMode.AUTO)
    if isinstance(choice, str) and choice in _MODES:
        return ToolChoice(_MODES[choice])
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return ToolChoice(ToolMode.NAMED, name_of(choice))
    raise wrong("tool_choice", choice, f'{one_of(_MODES)} or an object of type "function"')


def _chosen_name(choice: Mapping[str, Any]) -> str:
    refuse_unknown(choice, ("type", "function"), "tool_choice.")
    function = choice.get("function")
    if isinstance(function, Mapping):
        refuse_unknown(function, ("name",), "tool_choice.function.")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise wrong("tool_choice.function.name", name, "a string")
    return name


def _tool(field: str, tool: Any) -> Tool:
    if not isinstance(tool, Mapping):
        raise wrong(field, tool, "an object")
    if tool.get("type") is None:
        raise missing(f"{field}.type")
    if tool["type"] != "function":
        raise invalid(
            f"{field}.type",
            f"{field}.type is {quote(tool['type'])}; this server has only functions",
        )
    refuse_unknown(tool, _IN_TOOL, f"{field}.")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise wrong(f"{field}.function", function, "an object")
    field = f"{field}.function"
    refuse_unknown(function, _IN_FUNCTION, f"{field}.")
    name, description = function.get("name"), function.get("description")
    parameters, strict = function.get("parameters"), function.get("strict")
    if not isinstance(name, str):
        raise wrong(f"{field}.name", name, "a string")
    if not isinstance(description, str | None):
        raise wrong(f"{field}.description", description, "a string")
    if not isinstance(parameters, Mapping | None):
        raise wrong(f"{field}.parameters", parameters, "an object")
    if not isinstance(strict, bool | None):
        raise wrong(f"{field}.strict", strict, "true or false")
    return Tool(
        name,
        None if description is None else checked_text(f"{field}.description", description),
        parameters,
        strict,
        field,
    )
