"""The model's chat template: a conversation becomes one prompt.

Templates are Jinja from the model directory, never from a client, and run sandboxed with the few
extras that templates on the Hub rely on (`raise_exception`, `strftime_now`, `tojson` without HTML
escapes, loop controls, `generation` blocks).

What people write must not become control tokens: a message that contains "<|im_end|>" does not end
its turn. So a mark is put after the first character of every special token written in a message;
the rendered text is then cut at the marks and the pieces are tokenized apart, so that the tokenizer
never sees the whole token. Templates may still trim, split and compare the messages, and a message
without such text, which is nearly every one, is tokenized exactly as by other servers.
"""

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.conversation import ChatMessage
from gateway.errors import ModelError, invalid, quote


class ChatTemplate:
    """A compiled template; rendering is safe from several threads."""

    def __init__(
        self, source: str, variables: Mapping[str, str], special_tokens: Collection[str]
    ) -> None:
        """`variables` are what the template may use beside the messages (`bos_token`, ...).

        Raises ModelError if the source is not a template.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template is not valid: {error}") from error
        self._variables = dict(variables)
        written = [re.escape(token) for token in special_tokens if len(token) > 1]
        self._special = re.compile("|".join(written)) if written else None
        self._special_start = re.compile(f"(?=(?:{'|'.join(written)}))(.)", re.DOTALL)

    def render(self, messages: Sequence[ChatMessage]) -> list[str]:
        """The prompt up to where the assistant begins, in pieces to be tokenized apart.

        Raises RequestError when the template refuses the conversation.
        """
        mark = f"\ufdd0{secrets.token_hex(8)}\ufdd1"  # nobody can know it, so nobody can write it
        try:
            text = self._template.render(
                messages=[self._shielded(message, mark) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            reason = quote(str(error).replace(mark, ""))
            raise invalid(
                "messages", f"the model's chat template refuses the messages: {reason}"
            ) from error
        return text.split(mark)

    def _shielded(self, message: ChatMessage, mark: str) -> dict[str, str]:
        fields = {"role": message.role, "content": self._shield(message.content, mark)}
        if message.name is not None:
            fields["name"] = self._shield(message.name, mark)
        return fields

    def _shield(self, text: str, mark: str) -> str:
        if self._special is None or self._special.search(text) is None:
            return text
        return self._special_start.sub(rf"\1{mark}", text)


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
