"""What can be asked for: a text, token ids, or a conversation with tools."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, or token ids; or, as vLLM has them, {"prompt": text} or {"prompt_token_ids": ids}."""
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
    max_thought_tokens: int | None = field(default=None, kw_only=True)
    """Tokens after which the model's thoughts are ended for it; None: as long as the answer."""


def is_conversation(prompt: object) -> bool:
    """Whether it is a list of messages; a list of nothing is no prompt at all."""
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)


def read_prompt(prompt: Any, name: str = "prompt") -> str | list[int] | Chat:
    """What a prompt says, however it is said. Raises ValueError, which calls it `name`."""
    if isinstance(prompt, Chat):
        return prompt
    if is_conversation(prompt):
        return Chat(prompt)
    return read_raw_prompt(prompt, name)


def read_raw_prompt(prompt: Any, name: str = "prompt") -> str | list[int]:
    """A text or token ids. Raises ValueError, which calls it `name`."""
    if isinstance(prompt, Mapping):
        return _read_dict(prompt, name)
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Iterable) and not isinstance(prompt, bytes):
        try:
            return [index(token_id) for token_id in prompt]
        except TypeError:
            pass  # told below
    raise ValueError(f"{name} is {prompt!r:.60}; it must be a text, token ids or messages")


def _read_dict(prompt: Mapping[str, Any], name: str) -> str | list[int]:
    said = {field: value for field, value in prompt.items() if value is not None}
    if set(said) not in ({"prompt"}, {"prompt_token_ids"}):
        has = " and ".join(map(str, said)) or "nothing"
        raise ValueError(f"{name} has {has}; a dict must have either prompt or prompt_token_ids")
    [(field, value)] = said.items()
    if isinstance(value, str) != (field == "prompt") or isinstance(value, Mapping):
        kind = "a text" if field == "prompt" else "token ids"
        raise ValueError(f"{name}.{field} is {value!r:.60}; it must be {kind}")
    return read_raw_prompt(value, f"{name}.{field}")
