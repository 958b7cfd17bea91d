"""Prompts and how to continue them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gateway.errors import invalid
from gateway.grammar import GrammarKind, GrammarSpec, checked_schema
from gateway.model import ChatPrompt, Model
from gateway.openai.logprobs import check_prompt_logprobs
from gateway.options import Options
from gateway.parsing.deltas import Parsing
from gateway.request import GenerateRequest
from gateway.wire.conversations import conversation_of
from protos.quire.v1 import inference_pb2

_ANY_LENGTH = 1 << 62
_GRAMMAR_KINDS: Mapping[int, GrammarKind] = {
    inference_pb2.GRAMMAR_KIND_JSON_SCHEMA: GrammarKind.JSON_SCHEMA,
    inference_pb2.GRAMMAR_KIND_REGEX: GrammarKind.REGEX,
    inference_pb2.GRAMMAR_KIND_LARK: GrammarKind.LARK,
}
_CHOICE = inference_pb2.GRAMMAR_KIND_CHOICE

_OPTIONAL = (
    *("n", "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "num_logprobs"),
    *("num_prompt_logprobs", "skip_special_tokens", "truncate_prompt_tokens"),
)


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A valid request, and what the client gets of its outcome."""

    request: GenerateRequest
    parsing: Parsing | None
    """How a conversation's answers are read; None: all of it is text."""
    is_prompt_only: bool
    """What is generated is left out and not counted: the answer is about the prompt."""
    returns_prompt_token_ids: bool


def parse_generate(
    message: inference_pb2.GenerateRequest,
    model: Model,
    max_model_len: int,
    request_id: str,
    dice: random.Random,
) -> GenerateCall:
    """A valid call, its prompt rendered and tokenized. Raises RequestError."""
    model.check_name(message.model)
    options = replace(
        _options(message.sampling),
        priority=message.priority,
        cache_salt=message.cache_salt,
        timeout=message.timeout_s if message.HasField("timeout_s") else None,
        timeout_field="timeout_s",
    )
    is_prompt_only = options.max_tokens == 0 and options.num_prompt_logprobs is not None
    if is_prompt_only:
        options = replace(options, max_tokens=1)
    truncates = options.truncate_prompt_tokens is not None
    room = _ANY_LENGTH if truncates else max_model_len
    prompt, field = _prompt(message, model, room, options.grammar)
    request = model.build(
        prompt.token_ids,
        replace(
            options,
            grammar=prompt.grammar,
            shown_tokens=prompt.parsing.shown_tokens if prompt.parsing else frozenset(),
        ),
        max_model_len,
        dice=dice,
        request_id=request_id,
        prompt_field=field,
    )
    check_prompt_logprobs("num_prompt_logprobs", [request])
    return GenerateCall(request, prompt.parsing, is_prompt_only, message.return_prompt_token_ids)


def _prompt(
    message: inference_pb2.GenerateRequest,
    model: Model,
    max_model_len: int,
    content: GrammarSpec | None,
) -> tuple[ChatPrompt, str]:
    """The prompt, what the answer must be if its content must be `content`, and the field."""
    match message.WhichOneof("prompt"):
        case "text":
            tokens = model.text_prompt(message.text, max_model_len)
            return ChatPrompt(tokens, None, content), "text"
        case "tokens":
            return ChatPrompt(model.token_prompt(message.tokens.ids), None, content), "tokens"
        case "chat":
            return model.chat(conversation_of(message.chat), max_model_len, content), "chat"
        case _:
            raise invalid("prompt", "prompt is missing; it must be one of text, tokens or chat")


def _options(sampling: inference_pb2.SamplingOptions) -> Options:
    said = {name: getattr(sampling, name) for name in _OPTIONAL if sampling.HasField(name)}
    return Options(
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        include_stop_str_in_output=sampling.include_stop_str_in_output,
        logit_bias=dict(sampling.logit_bias),
        logprobs_field="num_logprobs",
        prompt_logprobs_field="num_prompt_logprobs",
        grammar=_grammar(sampling),
        allowed_token_ids=tuple(sampling.allowed_token_ids) or None,
        bad_words=tuple(sampling.bad_words),
        **said,
    )


def _grammar(sampling: inference_pb2.SamplingOptions) -> GrammarSpec | None:
    if not sampling.HasField("grammar"):
        return None
    grammar = sampling.grammar
    kind = _GRAMMAR_KINDS.get(grammar.kind)
    if kind is None and grammar.kind != _CHOICE:
        raise invalid(
            "grammar.kind",
            f"grammar.kind is {grammar.kind}; it must be one of {[*_GRAMMAR_KINDS, _CHOICE]}",
        )
    unused = "text" if kind is None else "choices"
    if getattr(grammar, unused):
        name = inference_pb2.GrammarKind.Name(grammar.kind)
        raise invalid(f"grammar.{unused}", f"grammar.{unused} is there; {name} has none")
    if kind is None:
        return GrammarSpec.choice(list(grammar.choices), "grammar.choices")
    if kind is GrammarKind.JSON_SCHEMA:
        return checked_schema(grammar.text, "grammar.text")
    return GrammarSpec(kind, grammar.text, "grammar.text")
