"""POST /tokenize and POST /detokenize, as vLLM has them.

A text is tokenized as /v1/completions would, a conversation as /v1/chat/completions would; either
may be longer than what the model takes.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from gateway.body import Body, checked_text, parse_body, parse_json
from gateway.errors import invalid
from gateway.model import Model
from gateway.openai.chat import conversation_of
from gateway.openai.schema import UNSERVED_IN_CHAT, ConversationBody
from gateway.request import check_token_ids


class TokenizeBody(Body):
    """POST /tokenize, of a text."""

    model_config = ConfigDict(title="TokenizeRequest")

    model: str | None = None
    """The served model; if it is not said, the one there is."""
    prompt: str
    """The text."""
    add_special_tokens: bool = True
    """Begin with the tokens with which the model's texts begin."""
    return_token_strs: bool = False
    """Also say the text of each token."""


class TokenizeChatBody(ConversationBody):
    """POST /tokenize, of a conversation: what the template writes, and nothing before it."""

    model_config = ConfigDict(title="TokenizeChatRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = {
        name: nothing for name, nothing in UNSERVED_IN_CHAT.items() if name != "add_special_tokens"
    }

    model: str | None = None
    """The served model; if it is not said, the one there is."""
    add_special_tokens: Literal[False] = False
    """The template writes them."""
    return_token_strs: bool = False
    """Also say the text of each token."""


class DetokenizeBody(Body):
    """POST /detokenize."""

    model_config = ConfigDict(title="DetokenizeRequest")

    model: str | None = None
    """The served model; if it is not said, the one there is."""
    tokens: list[int]
    """Token ids of the model."""


def tokenize(content: bytes, model: Model, max_model_len: int | None) -> dict[str, Any]:
    """The answer to a body. Raises RequestError."""
    value = parse_json(content)
    body: TokenizeBody | TokenizeChatBody
    if isinstance(value, dict) and "messages" in value:
        if "prompt" in value:
            raise invalid("prompt", "there are both prompt and messages; there must be one of them")
        body = parse_body(content, TokenizeChatBody)
        tokens = _of_conversation(body, model)
    else:
        body = parse_body(content, TokenizeBody)
        tokens = _of_text(body, model)
    answer: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": max_model_len,
        "tokens": tokens,
    }
    if body.return_token_strs:
        table = model.tokenizer.bytes_of
        answer["token_strs"] = [table[token].decode("utf-8", "replace") for token in tokens]
    return answer


def detokenize(content: bytes, model: Model) -> dict[str, Any]:
    """The answer to a body. Raises RequestError."""
    body = parse_body(content, DetokenizeBody)
    model.check_name(body.model)
    check_token_ids("tokens", body.tokens, model.tokenizer.vocab_size)
    return {"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=False)}


def _of_text(body: TokenizeBody, model: Model) -> list[int]:
    model.check_name(body.model)
    text = checked_text("prompt", body.prompt)
    return model.tokenizer.encode(text, add_special_tokens=body.add_special_tokens)


def _of_conversation(body: TokenizeChatBody, model: Model) -> list[int]:
    model.check_name(body.model)
    return model.chat(conversation_of(body, model), sys.maxsize).token_ids
