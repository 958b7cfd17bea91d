"""The request bodies of Anthropic's Messages: types only, as strict as OpenAI's.

Hints about caching (`cache_control`) are ignored: prompts that begin alike are found by themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, WithJsonSchema

from gateway.body import Body, Part

ROLES = ("user", "assistant", "system")
CHOICES = ("auto", "any", "tool", "none")
THINKS = ("enabled", "adaptive", "disabled")

_FORMAT = {
    "type": "object",
    "required": ["type", "schema"],
    "properties": {"type": {"const": "json_schema"}, "schema": {"type": "object"}},
}

REFUSED: Mapping[str, tuple[Any, ...]] = {
    # field: the values that ask for nothing
    "prefill": (None, "", []),
    "container": (None,),
    "mcp_servers": (None, []),
    "context_management": (None,),
    "service_tier": (None, "auto", "standard_only"),
    "speed": (None, "standard"),
}


class MessageBody(Part):
    """One turn of a conversation."""

    model_config = ConfigDict(title="MessageTurn", extra="allow")

    role: Annotated[str, WithJsonSchema({"type": "string", "enum": list(ROLES)})]
    """Who speaks."""
    content: str | list[dict[str, Any]]
    """What is said: a text, or blocks: text, thinking, tool_use, tool_result."""


class ToolBody(Part):
    """A function that the model may ask the client to call."""

    model_config = ConfigDict(title="MessageTool", extra="allow")

    name: str
    """1 to 64 letters, digits, _ or -."""
    type: Annotated[str | None, WithJsonSchema({"const": "custom"})] = None
    """This server runs no tools of its own."""
    description: str | None = None
    """What it does, for the model."""
    input_schema: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None
    """Whether its arguments must be valid by the schema."""


class ToolChoiceBody(Part):
    """Whether the model calls tools."""

    model_config = ConfigDict(title="MessageToolChoice")

    type: Annotated[str, WithJsonSchema({"type": "string", "enum": list(CHOICES)})]
    """As the model likes, at least one, this one, or none."""
    name: str | None = None
    """Which one, of type tool."""
    disable_parallel_tool_use: bool | None = None
    """Whether an answer may have only one call."""


class ThinkingBody(Part):
    """Whether the model thinks before it answers, where its template can say so."""

    model_config = ConfigDict(title="MessageThinking", extra="allow")

    type: Annotated[str, WithJsonSchema({"type": "string", "enum": list(THINKS)})]
    """Whether it does."""


class OutputConfigBody(Part):
    """What the answer looks like."""

    model_config = ConfigDict(title="MessageOutputConfig")

    format: Annotated[dict[str, Any] | None, WithJsonSchema(_FORMAT)] = None
    """What a JSON schema describes."""
    effort: str | None = None
    """How much the model thinks, where its template can say so."""


class CountTokensBody(Body):
    """POST /v1/messages/count_tokens."""

    model_config = ConfigDict(title="CountTokensRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = REFUSED

    model: str | None = None
    """The served model; if it is not said, the one there is."""
    messages: list[MessageBody]
    """The conversation, oldest turn first; a last turn of the assistant's is gone on with."""
    system: str | list[dict[str, Any]] | None = None
    """What the model is told first: a text, or blocks of text."""
    tools: list[ToolBody] | None = None
    """Functions that the model may ask the client to call."""
    tool_choice: ToolChoiceBody | None = None
    """Whether they are called; if it is not said, as the model likes."""
    thinking: ThinkingBody | None = None
    """Whether the model thinks before it answers, where its template can say so."""
    output_config: OutputConfigBody | None = None
    """What the answer looks like."""


class MessagesBody(CountTokensBody):
    """POST /v1/messages."""

    model_config = ConfigDict(title="MessageRequest")

    max_tokens: int
    """Tokens after which the answer ends."""
    stop_sequences: list[str] = Field([])
    """Texts that end the answer."""
    stream: bool = False
    """Answer with server-sent events while the text is written."""
    temperature: float | None = None
    """How freely tokens are drawn: 0 takes the likeliest, 1 follows the model."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens; 0 or -1: from all."""
    top_p: float | None = None
    """Draw from the likeliest tokens that make up this share of the probability."""
    metadata: dict[str, Any] | None = None
    """Labels; they change nothing."""


REFUSED_IN_TOOL: Mapping[str, tuple[Any, ...]] = {
    "allowed_callers": (None, ["direct"]),
    "defer_loading": (None, False),
}

REFUSED_IN_THINKING: Mapping[str, tuple[Any, ...]] = {
    "budget_tokens": (None,),
    "display": (None, "summarized"),
}
