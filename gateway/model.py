"""What the gateway knows of the model it serves, read once from its directory.

config.json              vocab_size, eos
generation_config.json   eos, recommended sampling (optional)
tokenizer.json           the tokenizer
tokenizer_config.json    special tokens by role, the chat template (optional)
chat_template.jinja      the chat template, if it is not in tokenizer_config.json
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from gateway.binding import Binder
from gateway.conversation import Conversation, Tool, ToolMode, checked_tools
from gateway.errors import Fault, ModelError, RequestError, invalid, quote
from gateway.grammar import GrammarSpec
from gateway.limits import DEFAULT_LIMITS, RequestLimits
from gateway.options import Options, SamplingDefaults
from gateway.parsing.deltas import Parsing
from gateway.parsing.formats import (
    AUTO,
    CALL_FORMATS,
    CallFormat,
    Thoughts,
    begins_thinking,
    call_format,
    thoughts_format,
)
from gateway.parsing.parser import AnswerParser
from gateway.ranges import check_known_range
from gateway.request import (
    GenerateRequest,
    Limits,
    build_request,
    check_bad_words,
    check_token_ids,
    too_long,
)
from gateway.template import ChatTemplate
from gateway.tokenizer import Tokenizer
from protos.limits import MAX_BAD_WORD_TOKENS

_MAX_VOCAB = 1 << 24
"""Beyond it, it is a mistake, and tables of it fit nowhere."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the model gets it, and how to read what it answers."""

    token_ids: list[int]
    parsing: Parsing | None = None
    """None: all that it writes is content."""
    grammar: GrammarSpec | None = None
    """What the whole answer must be; None: anything."""


@dataclass(frozen=True, slots=True)
class Model:
    """One served model."""

    name: str
    """What clients ask for."""
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None: a base model, which has no conversations."""
    eos_token_ids: frozenset[int]
    defaults: SamplingDefaults
    call_format: CallFormat | None = None
    """How it calls tools; None: it does not, or in a way that is not known here."""
    thoughts: Thoughts | None = None
    """How it sets its thoughts apart from its answer, if it thinks."""
    matryoshka_dimensions: frozenset[int] | None = None
    """Lengths to which its vectors may be cut: these, or any if there are none; None: no other."""
    limits: RequestLimits = DEFAULT_LIMITS
    """What one request may ask of it, by the operator's word."""

    def check_name(self, name: str | None) -> None:
        """Raises RequestError if a client asks for another model; not asking means this one."""
        if name and name != self.name:
            raise RequestError(
                Fault.UNKNOWN_MODEL,
                f"model {quote(name)} does not exist; this server has {quote(self.name)}",
                field="model",
            )

    def chat(
        self, conversation: Conversation, max_model_len: int, content: GrammarSpec | None = None
    ) -> ChatPrompt:
        """The prompt of a conversation; `content` is what the answer's content must be.

        Raises RequestError if the model cannot take it, or what must be cannot be enforced.
        """
        field = conversation.messages_field
        if self.template is None:
            raise invalid(
                field, f"model {quote(self.name)} has no chat template; use /v1/completions"
            )
        tools = self._tools(conversation)
        binder = self._binder
        limit = binder.thought_limit(conversation)
        rendered = self.template.render(conversation)
        self._check_length(sum(map(len, rendered.pieces)), max_model_len, field)
        tokens = self.tokenizer.encode_pieces(rendered.pieces)
        calls = self.call_format if tools else None
        thoughts = self.thoughts
        if calls is None and thoughts is None:
            return ChatPrompt(tokens, None, content)
        starts_thinking = thoughts is not None and begins_thinking(
            thoughts, rendered.tail, inside=conversation.continue_final_message
        )
        binding = binder.bind(
            conversation, tools, content, starts_thinking=starts_thinking, limit=limit
        )
        holds_calls = binding.holds_calls
        choice = conversation.tool_choice
        only_calls = bool(tools) and choice.mode in (ToolMode.REQUIRED, ToolMode.NAMED)
        make_parser = partial(
            AnswerParser,
            thoughts=thoughts,
            starts_thinking=starts_thinking,
            calls=calls,
            tools={tool.name: tool.parameters for tool in tools},
            parallel=conversation.parallel_tool_calls,
            exact=holds_calls,
            only_calls=only_calls,
            at_start=holds_calls and (content is not None or not (calls and calls.opening)),
        )
        parsing = Parsing(make_parser, self._shown_tokens(thoughts, calls), only_calls)
        return ChatPrompt(tokens, parsing, binding.grammar)

    def text_prompt(self, text: str, max_model_len: int) -> list[int]:
        """Tokens of a raw prompt, with the special tokens the model begins with."""
        self._check_length(len(text), max_model_len, "prompt")
        return self.tokenizer.encode(text, add_special_tokens=True)

    def token_prompt(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens themselves. Raises RequestError if one is not the model's."""
        check_token_ids("prompt", token_ids, self.tokenizer.vocab_size)
        return list(token_ids)

    def build(
        self,
        prompt_token_ids: Sequence[int],
        options: Options,
        max_model_len: int,
        *,
        dice: random.Random,
        request_id: str,
        prompt_field: str,
    ) -> GenerateRequest:
        """`build_request` with this model's limits and defaults."""
        limits = Limits(max_model_len, self.tokenizer.vocab_size, self.eos_token_ids, self.limits)
        return build_request(
            prompt_token_ids,
            options,
            self.defaults,
            limits,
            dice=dice,
            request_id=request_id,
            prompt_field=prompt_field,
            bad_words=self._bad_words(options.bad_words),
        )

    @property
    def _binder(self) -> Binder:
        return Binder(
            model_name=self.name,
            tokenizer=self.tokenizer,
            call_format=self.call_format,
            thoughts=self.thoughts,
            limits=self.limits,
        )

    def _bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """How each may be written: at the start of a text, and after a space."""
        check_bad_words(words, self.limits)
        spellings = (text for word in words for text in (word.strip(), f" {word.strip()}"))
        tokens = (self.tokenizer.encode(text, add_special_tokens=False) for text in spellings)
        spelled = tuple(dict.fromkeys(map(tuple, tokens)))
        num_tokens = sum(map(len, spelled))
        if num_tokens > MAX_BAD_WORD_TOKENS:
            raise invalid(
                "bad_words",
                f"bad_words has {num_tokens} tokens in all spellings; "
                f"it must have at most {MAX_BAD_WORD_TOKENS}",
            )
        return spelled

    def _tools(self, conversation: Conversation) -> Sequence[Tool]:
        """Those that may be called. Raises RequestError if the model has no way to do that."""
        tools, choice = conversation.tools, conversation.tool_choice
        checked_tools(tools, choice, self.limits)
        if not tools or choice.mode is ToolMode.NONE:
            return ()
        assert self.template is not None
        said = f"tools has {len(tools)} {'entry' if len(tools) == 1 else 'entries'}"
        if not self.template.knows_tools:
            raise invalid(
                "tools",
                f"{said}; the chat template of model {quote(self.name)} knows no tools; the server "
                "can be started with one that does: --chat-template FILE, or one of its own, such "
                "as --chat-template hermes",
            )
        if self.call_format is None:
            raise invalid(
                "tools",
                f"{said}; this server does not know how model {quote(self.name)} writes calls: it "
                f"knows {', '.join(CALL_FORMATS)}; see --tool-call-parser",
            )
        return tools

    def _shown_tokens(self, thoughts: Thoughts | None, calls: CallFormat | None) -> frozenset[int]:
        words = [*(calls.tokens if calls else ())]
        if thoughts is not None:
            words += [thoughts.begin, thoughts.end]
        tokens = map(self.tokenizer.special_token, words)
        return frozenset(token for token in tokens if token is not None)

    def _check_length(self, num_characters: int, max_model_len: int, field: str) -> None:
        """Megabytes that cannot fit are refused before they are tokenized."""
        least = self.tokenizer.least_tokens(num_characters)
        if least >= max_model_len:
            raise too_long(least, max_model_len, field, at_least=True)


def load_model(
    directory: Path,
    name: str | None = None,
    *,
    chat_template: Path | None = None,
    tool_call_parser: str = AUTO,
    reasoning_parser: str = AUTO,
    limits: RequestLimits = DEFAULT_LIMITS,
) -> Model:
    """Reads a model directory in Hugging Face's layout.

    `name` is what clients ask for; the directory's own name if it is None. `chat_template` is a
    file in place of the directory's own template. The parsers are names of formats, see
    `gateway.parsing.formats`. `limits` are what one request may ask for.

    Raises ModelError, with a message for the operator.
    """
    if not directory.is_dir():
        raise ModelError(f"model directory {directory} does not exist")
    config = _read_json(directory / "config.json")
    generation = _read_json(directory / "generation_config.json", optional=True)
    tokenizer_config = _read_json(directory / "tokenizer_config.json", optional=True)
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise ModelError(f"{directory / 'config.json'}: vocab_size is {vocab_size}; not an integer")
    if not 1 <= vocab_size <= _MAX_VOCAB:
        raise ModelError(
            f"{directory / 'config.json'}: vocab_size is {vocab_size}; it must be 1 to {_MAX_VOCAB}"
        )
    tokenizer = Tokenizer(directory / "tokenizer.json", vocab_size)
    variables = {
        role: text
        for role in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (text := _token_text(tokenizer_config.get(role))) is not None
    }
    special = frozenset(tokenizer.special_tokens.values())
    sources = _template_sources(directory, tokenizer_config, chat_template)
    template = None
    if source := sources.get("default"):
        tool_source = sources.get("tool_use")
        template = ChatTemplate(source, variables, special, tool_source=tool_source)
    shown = template.tool_source if template is not None else ""
    return Model(
        name=name or directory.resolve().name,
        tokenizer=tokenizer,
        template=template,
        eos_token_ids=_eos_token_ids(config, generation, tokenizer, variables.get("eos_token")),
        defaults=_defaults(generation, directory / "generation_config.json"),
        call_format=call_format(tool_call_parser, shown),
        thoughts=thoughts_format(reasoning_parser, shown),
        matryoshka_dimensions=_matryoshka_dimensions(config),
        limits=limits,
    )


def _matryoshka_dimensions(config: Mapping[str, Any]) -> frozenset[int] | None:
    """As vLLM reads config.json."""
    said = config.get("matryoshka_dimensions")
    if isinstance(said, list):
        return frozenset(said)
    return frozenset() if config.get("is_matryoshka") is True else None


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise ModelError(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} cannot be read: it is not a JSON object")
    return content


def _token_text(value: Any) -> str | None:
    """Special tokens are written either as text or as {"content": text, ...}."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _template_sources(
    directory: Path, tokenizer_config: Mapping[str, Any], chosen: Path | None
) -> dict[str, str]:
    """Templates by name: "default", and "tool_use" if there is another for that."""
    path = chosen or directory / "chat_template.jinja"
    if chosen is not None or path.is_file():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        named = [(entry.get("name"), entry.get("template")) for entry in entries]
        return {
            name: source
            for name, source in named
            if isinstance(name, str) and isinstance(source, str)
        }
    return {"default": template} if isinstance(template, str) else {}


def _eos_token_ids(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: Tokenizer,
    eos_token: str | None,
) -> frozenset[int]:
    said = generation.get("eos_token_id")
    if said is None:
        said = config.get("eos_token_id")
    tokens = list(said) if isinstance(said, list) else [said]
    if eos_token is not None:
        tokens.append(tokenizer.token_id(eos_token))
    return frozenset(
        token for token in tokens if isinstance(token, int) and 0 <= token < tokenizer.vocab_size
    )


def _defaults(generation: Mapping[str, Any], path: Path) -> SamplingDefaults:
    """Raises ModelError for a value that no client may say either."""
    said: dict[str, Any] = {}
    for each in fields(SamplingDefaults):
        value = generation.get(each.name)
        if value is None:
            continue
        if not isinstance(value, int if each.type is int else int | float) or isinstance(
            value, bool
        ):
            kind = "an integer" if each.type is int else "a number"
            raise ModelError(f"{path}: {each.name} is {quote(value)}; it must be {kind}")
        try:
            check_known_range(each.name, value, DEFAULT_LIMITS)
        except RequestError as error:
            raise ModelError(f"{path}: {error.message}") from error
        said[each.name] = value
    return SamplingDefaults(**said)
