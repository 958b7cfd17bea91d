"""The request bodies of Anthropic's Messages, as strict as OpenAI's.

Hints about caching (`cache_control`) change nothing: prompts that begin alike are found by
themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from gateway.body import Body, Part
from gateway.thinking import Effort

_FORMAT = {
    "type": "object",
    "required": ["type", "schema"],
    "properties": {"type": {"const": "json_schema"}, "schema": {"type": "object"}},
}


class CacheControlBody(Part):
    """A hint about caching."""

    model_config = ConfigDict(title="CacheControl")

    type: Literal["ephemeral"]
    """How long what is found again is kept: while there is room."""
    ttl: Literal["5m", "1h"] | None = None
    """Nothing is kept for a certain time."""


class MessageBody(Part):
    """One turn."""

    model_config = ConfigDict(title="MessageTurn")

    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    content: str | list[dict[str, Any]]
    """What is said: a text, or blocks: text, thoughts, calls, their results."""


class ToolBody(Part):
    """A function that the model may ask the client to call. Anthropic's own tools have other
    fields, and are refused by their type."""

    model_config = ConfigDict(title="MessageTool", extra="allow")

    name: str
    """1 to 64 letters, digits, _ or -."""
    type: str | None = None
    """custom, or nothing: this server runs no tools of its own."""
    description: str | None = None
    """What it does, for the model."""
    input_schema: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None
    """Hold the arguments to their schema."""
    cache_control: CacheControlBody | None = None
    """A hint about caching; it changes nothing."""


class ToolChoiceBody(Part):
    """Whether the model calls tools."""

    model_config = ConfigDict(title="MessageToolChoice")

    type: Literal["auto", "any", "tool", "none"]
    """As it likes, at least one, the one named, or none."""
    name: str | None = None
    """Of the tool, for type tool."""
    disable_parallel_tool_use: bool | None = None
    """One answer may have one call at most."""


class ThinkingBody(Part):
    """Whether the model thinks before it answers, where its template can say so."""

    model_config = ConfigDict(title="MessageThinking")

    type: Literal["enabled", "adaptive", "disabled"]
    """Thinks, as it likes, or does not."""
    budget_tokens: int | None = None
    """For type enabled: tokens after which the thoughts are ended for it; less than max_tokens."""
    display: Literal["summarized"] | None = None
    """Thoughts are shown in full."""


class OutputConfigBody(Part):
    """What the answer looks like."""

    model_config = ConfigDict(title="MessageOutputConfig")

    format: Annotated[dict[str, Any] | None, WithJsonSchema(_FORMAT)] = None
    """What a JSON schema describes."""
    effort: Effort | None = None
    """How much the model thinks, if its chat template can say so; if it is not said, as it
    likes."""


class MetadataBody(Part):
    """Labels."""

    model_config = ConfigDict(title="MessageMetadata")

    user_id: str | None = None
    """A label; it changes nothing."""


class CountTokensBody(Body):
    """POST /v1/messages/count_tokens."""

    model_config = ConfigDict(title="CountTokensRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = {
        # the values that ask for nothing
        "prefill": ("", []),
        "container": (),
        "diagnostics": (),
        "mcp_servers": ([],),
        "context_management": (),
        "inference_geo": (),
        "speed": ("standard",),
        "user_profile_id": (),
        "workspace_id": (),
    }

    model: str | None = None
    """The served model; if it is not said, the one there is."""
    messages: list[MessageBody]
    """The conversation, oldest turn first; a last turn of the assistant's is gone on with."""
    system: str | list[dict[str, Any]] | None = None
    """What the model is told first: a text, or text blocks."""
    tools: list[ToolBody] = Field([])
    """Functions that the model may ask the client to call."""
    tool_choice: ToolChoiceBody | None = None
    """Whether tools are called; if it is not said, as the model likes."""
    thinking: ThinkingBody | None = None
    """Whether the model thinks before it answers; if it is not said, as its chat template has
    it."""
    output_config: OutputConfigBody | None = None
    """What the answer looks like."""
    cache_control: CacheControlBody | None = None
    """A hint about caching; it changes nothing."""


class MessagesBody(CountTokensBody):
    """POST /v1/messages."""

    model_config = ConfigDict(title="MessageRequest")

    max_tokens: int
    """Tokens after which the answer ends, thoughts included."""
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
    metadata: MetadataBody | None = None
    """Labels; they change nothing."""
    timeout: float | None = None
    """Seconds after which the answer must be complete: what is not, waiting or half said, ends with
    an error; if it is not said, as long as it takes. The X-Request-Timeout header says the same;
    the sooner counts."""
    service_tier: Literal["auto", "standard_only"] = "auto"
    """All requests are served alike."""


UNSERVED_IN_TOOL: Mapping[str, Sequence[Any]] = {
    # the values that ask for nothing
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "eager_input_streaming": (True,),
    "input_examples": ([],),
}
