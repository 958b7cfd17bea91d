"""The request bodies of Anthropic's Messages: types only, as strict as OpenAI's.

Hints about caching (`cache_control`) are ignored: prompts that begin alike are found by themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gateway.body import Body

REFUSED: Mapping[str, tuple[Any, ...]] = {
    # field: the values that ask for nothing
    "prefill": (None, "", []),
    "container": (None,),
    "mcp_servers": (None, []),
    "context_management": (None,),
    "service_tier": (None, "auto", "standard_only"),
    "speed": (None, "standard"),
}


class MessageBody(BaseModel):
    """One turn: a string, or blocks."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: str | list[dict[str, Any]]


class ToolBody(BaseModel):
    """A function that the model may ask the client to call."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoiceBody(BaseModel):
    """Whether the model calls tools."""

    model_config = ConfigDict(strict=True)

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(BaseModel):
    """Whether the model thinks before it answers, where its template can say so."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str


class OutputConfigBody(BaseModel):
    """What the answer looks like."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: dict[str, Any] | None = None
    effort: str | None = None
    """How much the model thinks, where its template can say so."""


class CountTokensBody(Body):
    """POST /v1/messages/count_tokens."""

    model_config = ConfigDict(title="CountTokensRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = REFUSED

    model: str | None = None
    messages: list[MessageBody]
    system: str | list[dict[str, Any]] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputConfigBody | None = None


class MessagesBody(CountTokensBody):
    """POST /v1/messages."""

    model_config = ConfigDict(title="MessageRequest")

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: dict[str, Any] | None = None


REFUSED_IN_TOOL: Mapping[str, tuple[Any, ...]] = {
    "allowed_callers": (None, ["direct"]),
    "defer_loading": (None, False),
}

REFUSED_IN_THINKING: Mapping[str, tuple[Any, ...]] = {
    "budget_tokens": (None,),
    "display": (None, "summarized"),
}
