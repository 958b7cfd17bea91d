"""What the answers of OpenAI's endpoints, and of vLLM's beside them, look like.

Nothing is made of these classes: answers are written by hand, as fast as it goes. They are for the
OpenAPI document, and a test holds what is answered against them.
"""

from typing import Any, Literal

from pydantic import Field

from gateway.body import Part


def absent() -> Any:
    """The default of what is not always there."""
    return Field(None)


MAY_BE_NULL = "x-may-be-null"
"""Marks what is not always there and, if it is, may be null."""


def absent_or_null() -> Any:
    """The same, where it may also be there and null."""
    return Field(None, json_schema_extra={MAY_BE_NULL: True})


FinishReason = Literal["stop", "length", "tool_calls"]
StopReason = str | int | None


class CachedTokens(Part):
    """Of the tokens of a prompt, those that need not be computed again."""

    cached_tokens: int
    """How many."""


class ThoughtTokens(Part):
    """Of the tokens of answers, those of thoughts."""

    reasoning_tokens: int
    """How many."""


class Usage(Part):
    """Tokens of all prompts and answers; in a stream that goes on, so far."""

    prompt_tokens: int
    """Of all prompts."""
    completion_tokens: int
    """Of all answers."""
    total_tokens: int
    """The sum."""
    prompt_tokens_details: CachedTokens = absent()
    """At the end."""
    completion_tokens_details: ThoughtTokens = absent()
    """At the end, of chats."""


class TopLogprob(Part):
    """A token and how likely it was."""

    token: str
    """Its text."""
    logprob: float
    """-9999 is as good as impossible."""
    bytes: list[int]
    """Its bytes: a token may be part of a character."""


class TokenLogprob(TopLogprob):
    """A token of an answer."""

    top_logprobs: list[TopLogprob]
    """The likeliest in its place, as many as were asked for."""


class ChatLogprobs(Part):
    """Of an answer, or of a chunk."""

    content: list[TokenLogprob]
    """In their order."""
    refusal: None
    """There are none."""


class CalledFunction(Part):
    """What is to be called."""

    name: str
    """Of the function."""
    arguments: str
    """As JSON; it may be cut where the answer was."""


class ToolCall(Part):
    """A call that the model asks the client for."""

    id: str
    """To be said with its result."""
    type: Literal["function"]
    """Always."""
    function: CalledFunction
    """The function, and what it is called with."""


class AnswerMessage(Part):
    """The assistant's turn."""

    role: Literal["assistant"]
    """Always."""
    content: str | None
    """Null where the model said something else instead."""
    refusal: None
    """There is none."""
    reasoning: str = absent()
    """The model's thoughts, if it had any."""
    reasoning_content: str = absent()
    """The same by another name."""
    tool_calls: list[ToolCall] = absent()
    """If there are any."""


class _Told(Part):
    """With `return_token_ids`."""

    token_ids: list[int] = absent()
    """With `return_token_ids`: those of the answer, or of the chunk."""


class ChatChoice(_Told):
    """One answer."""

    index: int
    """From 0."""
    message: AnswerMessage
    """What was said."""
    logprobs: ChatLogprobs | None
    """With `logprobs`."""
    finish_reason: FinishReason
    """Why it ended."""
    stop_reason: StopReason
    """The stop string or stop token that ended it, if one did."""


class _Answer(Part):
    """What all have."""

    id: str
    """Of the request."""
    created: int
    """When, in seconds since 1970."""
    model: str
    """The served model."""


PromptLogprobs = list[dict[str, Any] | None]


class ChatCompletion(_Answer):
    """Answers of a conversation."""

    object: Literal["chat.completion"]
    """Always."""
    choices: list[ChatChoice]
    """As many as `n`."""
    usage: Usage
    """Of all."""
    prompt_token_ids: list[int] = absent()
    """With `return_token_ids`: those of the prompt."""
    prompt_logprobs: PromptLogprobs = absent()
    """With `prompt_logprobs`: for each token of the prompt but the first, logprobs by token id."""


class FunctionDelta(Part):
    """More of a call."""

    name: str = absent()
    """Of the function, once."""
    arguments: str = absent()
    """More of its arguments."""


class ToolCallDelta(Part):
    """More of the calls."""

    index: int
    """Of the call."""
    id: str = absent()
    """When it begins."""
    type: Literal["function"] = absent()
    """When it begins."""
    function: FunctionDelta
    """More of it."""


class MessageDelta(Part):
    """More of the assistant's turn."""

    role: Literal["assistant"] = absent()
    """In the first chunk."""
    content: str | None = absent_or_null()
    """More text; null where an answer that must be calls has none."""
    reasoning: str = absent()
    """More thoughts."""
    reasoning_content: str = absent()
    """The same by another name."""
    tool_calls: list[ToolCallDelta] = absent()
    """More of the calls."""


class ChatChunkChoice(_Told):
    """More of one answer."""

    index: int
    """Of the answer."""
    delta: MessageDelta
    """What is new."""
    logprobs: ChatLogprobs | None
    """With `logprobs`: of the new tokens."""
    finish_reason: FinishReason | None
    """Why it ended, in its last chunk."""
    stop_reason: StopReason = absent_or_null()
    """The stop string or stop token that ended it, if one did."""


class ChatCompletionChunk(_Answer):
    """A part of the answers."""

    object: Literal["chat.completion.chunk"]
    """Always."""
    choices: list[ChatChunkChoice]
    """One; none where usage is told."""
    usage: Usage | None = absent_or_null()
    """With `stream_options.include_usage`, in the last chunk; with `continuous_usage_stats`, in
    all."""
    prompt_token_ids: list[int] = absent()
    """With `return_token_ids`: those of the prompt, in the first chunk of each answer."""


class CompletionLogprobs(Part):
    """Of a text's tokens; with `echo`, of the prompt's too."""

    tokens: list[str]
    """Their texts."""
    token_logprobs: list[float | None]
    """Null for the first of a prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest in each place."""
    text_offset: list[int]
    """Where they begin in the text, in characters."""


class CompletionChoice(_Told):
    """One text, or more of it."""

    index: int
    """From 0: those of the first prompt, then of the next."""
    text: str
    """With `echo` it begins with the prompt."""
    logprobs: CompletionLogprobs | None
    """With `logprobs`."""
    finish_reason: Literal["stop", "length"] | None
    """Why it ended; null in a chunk before it does."""
    stop_reason: StopReason = absent_or_null()
    """The stop string or stop token that ended it, if one did."""
    prompt_token_ids: list[int] = absent()
    """With `return_token_ids`: those of its prompt, in its first chunk."""
    prompt_logprobs: PromptLogprobs = absent()
    """With `prompt_logprobs`: for each token of the prompt but the first, logprobs by token id."""


class Completion(_Answer):
    """Texts that go on from prompts; a chunk of a stream looks the same."""

    object: Literal["text_completion"]
    """Always."""
    choices: list[CompletionChoice]
    """For each prompt as many as `n`."""
    usage: Usage | None = absent_or_null()
    """Of all; of a stream as in chats."""


class EmbeddingUsage(Part):
    """Tokens of all inputs."""

    prompt_tokens: int
    """Of all inputs."""
    total_tokens: int
    """The same."""
    prompt_tokens_details: CachedTokens
    """Of them."""


class Embedding(Part):
    """The vector of one input."""

    object: Literal["embedding"]
    """Always."""
    index: int
    """Of the input."""
    embedding: list[float] | str
    """Numbers, or base64 of float32."""


class EmbeddingList(_Answer):
    """Vectors."""

    object: Literal["list"]
    """Always."""
    data: list[Embedding]
    """In the order of the inputs."""
    usage: EmbeddingUsage
    """Of all."""


class ServedModel(Part):
    """A model."""

    id: str
    """Its name."""
    object: Literal["model"]
    """Always."""
    created: int
    """When this server started, in seconds since 1970."""
    owned_by: Literal["quire"]
    """Always."""
    max_model_len: int | None
    """Tokens of prompt and answer together; null until a worker is there."""


class ServedModels(Part):
    """All models: one."""

    object: Literal["list"]
    """Always."""
    data: list[ServedModel]
    """It."""


class Tokens(Part):
    """A text as tokens."""

    count: int
    """How many."""
    max_model_len: int | None
    """How many the model takes, with its answer."""
    tokens: list[int]
    """Their ids."""
    token_strs: list[str] = absent()
    """With `return_token_strs`: their texts."""


class Text(Part):
    """Tokens as text."""

    prompt: str
    """The text."""
