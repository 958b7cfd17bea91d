"""What can be asked for: a text, token ids, or a conversation with tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Prompt = str | Sequence[int]
"""Text, or token ids."""
Conversation = Sequence[Mapping[str, Any]]
"""OpenAI's messages, oldest first: {"role": ..., "content": ...}, and for an assistant
`tool_calls` and `reasoning`, for a tool `tool_call_id`."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, and what the model may do about it; the words are OpenAI's and vLLM's."""

    messages: Conversation
    tools: Sequence[Mapping[str, Any]] = field(default=(), kw_only=True)
    """What the model may call: {"type": "function", "function": {"name": ..., "description": ...,
    "parameters": a JSON schema, "strict": ...}}."""
    tool_choice: str | Mapping[str, Any] = field(default="auto", kw_only=True)
    """"none", "auto", "required", or {"type": "function", "function": {"name": ...}}."""
    parallel_tool_calls: bool = field(default=True, kw_only=True)
    """Whether one answer may have several calls."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """More variables for the chat template."""
    add_generation_prompt: bool | None = field(default=None, kw_only=True)
    """Begin the assistant's turn; None: unless continue_final_message."""
    continue_final_message: bool = field(default=False, kw_only=True)
    """Leave the last turn open, so that the model goes on with it."""


def is_conversation(prompt: object) -> bool:
    """Whether it is a list of messages; a list of nothing is no prompt at all."""
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)
