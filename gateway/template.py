"""The model's chat template: a conversation becomes one prompt.

Templates are Jinja from the model directory or the operator, never from a client, and run sandboxed
with the few extras that templates on the Hub rely on (`raise_exception`, `strftime_now`, `tojson`
without HTML escapes, loop controls, `generation` blocks). Every turn of a loop and every call of a
macro looks at the clock, so that no conversation can keep a thread for longer than the time limit.

What people write must not become control tokens: a message that contains "<|im_end|>" does not end
its turn. So a mark is put after the first character of every special token written in a message, a
tool or anything else that comes from a client; the rendered text is then cut at the marks and the
pieces are tokenized apart, so that the tokenizer never sees the whole token. Templates may still
trim, split and compare the messages, and a message without such text, which is nearly every one, is
tokenized exactly as by other servers.
"""

import json
import re
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.conversation import MAX_DEPTH, ChatMessage, Conversation, Tool, ToolCall, ToolMode
from gateway.errors import ModelError, invalid, quote
from gateway.nesting import is_deeper

RENDER_S = 5.0
"""Rendering takes milliseconds; what takes longer than this is given up."""

_TICK = "_quire_tick"
_OURS = ("messages", "tools", "documents", "add_generation_prompt", _TICK)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text."""

    pieces: list[str]
    """To be tokenized apart."""
    tail: str
    """The end of it, after all turns but one that is to be continued: what the answer follows."""


class ChatTemplate:
    """A compiled template; rendering is safe from several threads."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        special_tokens: Collection[str],
        *,
        tool_source: str | None = None,
        render_s: float = RENDER_S,
    ) -> None:
        """`variables` are what the template may use beside the messages (`bos_token`, ...);
        `tool_source` is the template for conversations with tools, if it is another one.

        Raises ModelError if a source is not a template.
        """
        self.source = source
        self.tool_source = tool_source or source
        self._template, names = _compiled(source)
        self._tool_template, names_with_tools = _compiled(self.tool_source)
        self.knows_tools = "tools" in names_with_tools
        """Whether the model is told of tools."""
        self.variables = names & names_with_tools
        """What a conversation may tell it, beside the messages."""
        self._variables = dict(variables)
        self._render_s = render_s
        written = [re.escape(token) for token in special_tokens if len(token) > 1]
        self._special = re.compile("|".join(written)) if written else None
        self._special_start = re.compile(f"(?=(?:{'|'.join(written)}))(.)", re.DOTALL)

    def render(self, conversation: Conversation) -> Rendered:
        """The prompt up to where the model goes on. Raises RequestError when the template refuses
        the conversation."""
        mark = f"\ufdd0{secrets.token_hex(8)}\ufdd1"  # nobody can know it, so nobody can write it
        end = f"\ufdd2{secrets.token_hex(8)}\ufdd1"
        messages = [self._message(message, mark) for message in conversation.messages]
        if conversation.continue_final_message:
            messages[-1]["content"] += end
        tools = None
        if conversation.tools and conversation.tool_choice.mode is not ToolMode.NONE:
            tools = [self._shielded(_tool_fields(tool), mark) for tool in conversation.tools]
        variables = self._arguments(conversation.template_arguments, mark)
        text = self._rendered(
            self._tool_template if tools else self._template,
            conversation.messages_field,
            mark,
            variables
            | {
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": conversation.add_generation_prompt
                and not conversation.continue_final_message,
            },
        )
        tail = text
        if conversation.continue_final_message:
            text, found, _ = text.rpartition(end)
            if not found:
                field = conversation.messages_field
                raise invalid(
                    "continue_final_message",
                    "continue_final_message is true; "
                    f"the model's chat template does not show the last of {field} to go on with",
                )
            tail = messages[-1]["content"].removesuffix(end)
        return Rendered(_split(text, mark), tail.replace(mark, ""))

    def _rendered(
        self, template: jinja2.Template, field: str, mark: str, variables: Mapping[str, Any]
    ) -> str:
        ends_at = time.monotonic() + self._render_s
        try:
            return template.render(
                {**self._variables, **variables, _TICK: lambda: _check_time(ends_at)}
            )
        except _TooSlow as error:
            raise invalid(
                field,
                f"the model's chat template takes more than {self._render_s:g} s for {field}",
            ) from error
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            reason = quote(str(error).replace(mark, ""))
            raise invalid(
                field, f"the model's chat template refuses the messages: {reason}"
            ) from error

    def _arguments(self, said: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """The client's variables. Raises RequestError if one has a meaning of its own."""
        field = "chat_template_kwargs"
        for name in said:
            if name in _OURS or name in self._variables:
                raise invalid(field, f"{field} has {quote(name)}, which is not a client's to say")
        return {name: self._shielded(value, mark) for name, value in said.items()}

    def _message(self, message: ChatMessage, mark: str) -> dict[str, Any]:
        fields: dict[str, Any] = {"role": message.role}
        fields["content"] = self._shielded(message.content, mark)
        said: dict[str, Any] = {}
        if message.name is not None:
            said["name"] = message.name
        if message.reasoning is not None:
            said["reasoning_content"] = message.reasoning
        if message.tool_calls:
            said["tool_calls"] = [_call_fields(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            said["tool_call_id"] = message.tool_call_id
        return fields | {name: self._shielded(value, mark) for name, value in said.items()}

    def _shielded(self, value: Any, mark: str) -> Any:
        """The same value, in which no string has a special token."""
        if isinstance(value, str):
            if self._special is None or self._special.search(value) is None:
                return value
            return self._special_start.sub(rf"\1{mark}", value)
        if isinstance(value, Mapping):
            return {
                self._shielded(name, mark): self._shielded(inner, mark)
                for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self._shielded(inner, mark) for inner in value]
        return value


class _TooSlow(Exception):
    """The template takes too long."""


def _check_time(ends_at: float) -> str:
    if time.monotonic() > ends_at:
        raise _TooSlow
    return ""


def _split(text: str, mark: str) -> list[str]:
    """A template may write the mark as JSON does without its higher characters, too."""
    pieces = text.split(mark)
    written = json.dumps(mark)[1:-1]
    return [part for piece in pieces for part in piece.split(written)]


def _tool_fields(tool: Tool) -> dict[str, Any]:
    """A tool as templates expect it: as OpenAI's clients write it, without what was not said."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _call_fields(call: ToolCall) -> dict[str, Any]:
    """An earlier call; templates expect its arguments as an object, wherever they are one."""
    arguments: Any = call.arguments
    try:
        parsed = json.loads(call.arguments or "{}")
        if isinstance(parsed, dict) and not is_deeper(parsed, MAX_DEPTH):
            arguments = parsed
    except (ValueError, RecursionError):
        pass  # the model failed to write JSON, and may see what it wrote
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def check_source(source: str) -> None:
    """Raises ModelError if it is not a template; the message has the line."""
    _compiled(source)


def _compiled(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """The template, and the names of the variables that it reads. Raises ModelError."""
    environment = _environment()
    try:
        tree = environment.parse(source)
        names = frozenset(meta.find_undeclared_variables(tree))
        _add_ticks(tree)
        code = environment.compile(tree)
    except jinja2.TemplateSyntaxError as error:
        where = f"line {error.lineno}: {error.message}"
        raise ModelError(f"the chat template is not valid: {where}") from error
    except (jinja2.TemplateError, RecursionError) as error:
        raise ModelError(f"the chat template is not valid: {error}") from error
    return jinja2.Template.from_code(environment, code, environment.globals), names


def _add_ticks(tree: nodes.Template) -> None:
    """A look at the clock in every loop and macro: nothing else repeats itself."""
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        assert isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock)
        tick = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        node.body.insert(0, nodes.Output([tick]))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own protocol

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's body in place of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
