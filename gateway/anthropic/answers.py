"""What the answers of Anthropic's endpoints look like, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import ConfigDict

from gateway.body import Part


class MessageUsage(Part):
    """Tokens; the three counts of input make up the prompt."""

    input_tokens: int
    """Of the prompt, computed for this answer."""
    cache_creation_input_tokens: int
    """None: what may be cached is not counted apart."""
    cache_read_input_tokens: int
    """Of the prompt, that need not be computed again."""
    output_tokens: int
    """Of the answer."""


class Message(Part):
    """The assistant's turn."""

    model_config = ConfigDict(extra="allow")

    id: str
    """Of the request."""
    type: Literal["message"]
    """Always."""
    role: Literal["assistant"]
    """Always."""
    model: str
    """The served model."""
    content: list[dict[str, Any]]
    """Blocks: thinking, text, tool_use."""
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    """Why it ended."""
    stop_sequence: str | None
    """The text that ended it, if one did."""
    usage: MessageUsage
    """Of prompt and answer."""


class MessageEvent(Part):
    """An event of a message; Anthropic's documentation has the fields of each."""

    model_config = ConfigDict(extra="allow")

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    ]
    """Which; the event has the same name."""


class InputTokens(Part):
    """The tokens of a conversation."""

    input_tokens: int
    """How many."""
