"""What `LLM` and the clients return, in vLLM's words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quire.prompts import Chat, Conversation, Prompt, read_prompt


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was, before temperature and filters."""

    logprob: float
    """Natural logarithm of its probability."""
    rank: int
    """1 for the likeliest token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for."""

    id: str
    """Its result goes back under it."""
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """News of a call."""

    index: int
    """Which call of the sample, from 0."""
    id: str
    """Set when it begins."""
    name: str
    """Set when it begins."""
    arguments: str
    """More of its JSON text."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sample of a prompt."""

    index: int
    """Which sample, from 0."""
    text: str
    """Of a conversation: what is neither thought nor call."""
    token_ids: list[int]
    finish_reason: str
    """"stop", "length", "abort" or "error"."""
    logprobs: list[dict[int, Logprob]] | None = None
    """Per token: the chosen one and the alternatives asked for, by id."""
    stop_reason: str | int | None = None
    """One of your `stop` or `stop_token_ids`, if that ended it."""
    reasoning: str = ""
    """Of a conversation: what the model thought before it answered."""
    tool_calls: list[ToolCall] = field(default_factory=list)
    """Of a conversation: what it asks you to call."""
    num_thought_tokens: int = 0
    """Of `token_ids`, those whose text is `reasoning`."""

    def message(self) -> dict[str, Any]:
        """The answer as the next turn of its conversation."""
        said: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            said["reasoning"] = self.reasoning
        if self.tool_calls:
            said["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return said


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and all its samples."""

    prompt: str | None
    """As given; None for a prompt of token ids or a conversation."""
    prompt_token_ids: list[int] | None
    """As the model got them; None if an older router did not say."""
    outputs: list[CompletionOutput]
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """If asked for, per token of the prompt: the token and the alternatives, by id; None for the
    first, which nothing comes before."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sample cost."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    num_thought_tokens: int = 0
    """Output tokens that are thoughts, in a conversation; 0 from an older router."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """News of one sample of a stream."""

    index: int
    """Which sample, from 0."""
    text: str
    """Since its last chunk."""
    token_ids: list[int]
    """Since its last chunk; their text may still be held back."""
    logprobs: list[dict[int, Logprob]] | None
    """One per token, if asked for."""
    finish_reason: str | None
    """"stop" or "length" in a sample's last chunk."""
    usage: Usage | None
    """Comes with it."""
    stop_reason: str | int | None = None
    """Comes with it: one of your `stop` or `stop_token_ids`, if that ended it."""
    reasoning: str = ""
    """Since its last chunk: what the model thinks before it answers."""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    """Calls that begin or go on."""
    prompt_token_ids: list[int] | None = None
    """In the first sample's first chunk, if they were asked for or the prompt is scored."""
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """Likewise, if asked for; see `RequestOutput`."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked for."""

    name: str
    max_model_len: int | None
    """Prompt and output tokens together; None until a worker has attached."""


def output_of(
    prompt: Prompt | Conversation | Chat, chunks: Sequence[Chunk], num_samples: int
) -> RequestOutput:
    """The whole of a request whose stream has ended."""
    samples = [[chunk for chunk in chunks if chunk.index == i] for i in range(num_samples)]
    first, usage = samples[0][0], samples[0][-1].usage
    assert usage is not None
    said = read_prompt(prompt)
    return RequestOutput(
        prompt=said if isinstance(said, str) else None,
        prompt_token_ids=said if isinstance(said, list) else first.prompt_token_ids,
        outputs=[_sample_of(index, sample) for index, sample in enumerate(samples)],
        num_prompt_tokens=usage.num_prompt_tokens,
        num_cached_tokens=usage.num_cached_tokens,
        prompt_logprobs=first.prompt_logprobs,
    )


def _sample_of(index: int, chunks: Sequence[Chunk]) -> CompletionOutput:
    last = chunks[-1]
    assert last.finish_reason is not None
    rows = [row for chunk in chunks for row in chunk.logprobs or ()]
    return CompletionOutput(
        index=index,
        text="".join(chunk.text for chunk in chunks),
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
        finish_reason=last.finish_reason,
        logprobs=None if last.logprobs is None else rows,
        stop_reason=last.stop_reason,
        reasoning="".join(chunk.reasoning for chunk in chunks),
        tool_calls=calls_of(delta for chunk in chunks for delta in chunk.tool_calls),
        num_thought_tokens=last.usage.num_thought_tokens if last.usage else 0,
    )


def calls_of(deltas: Iterable[ToolCallDelta]) -> list[ToolCall]:
    """The calls of one sample, out of the news of them."""
    calls: list[ToolCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id, delta.name, delta.arguments))
        else:
            begun = calls[delta.index]
            calls[delta.index] = replace(begun, arguments=begun.arguments + delta.arguments)
    return calls
