"""What the answers of OpenAI's endpoints, and of vLLM's beside them, look like.

Nothing is made of these classes: answers are written by hand, as fast as it goes. They are for the
OpenAPI document, and a test holds what is answered against them.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from gateway.body import Part


def _absent() -> Any:
    """The default of what is not always there."""
    return Field(None)


MAY_BE_NULL = "x-may-be-null"
"""Marks what is not always there and, if it is, may be null."""


def _absent_or_null() -> Any:
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
    prompt_tokens_details: CachedTokens = _absent()
    """At the end."""
    completion_tokens_details: ThoughtTokens = _absent()
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
    reasoning: str = _absent()
    """The model's thoughts, if it had any."""
    reasoning_content: str = _absent()
    """The same by another name."""
    tool_calls: list[ToolCall] = _absent()
    """If there are any."""


class _Told(Part):
    """With `return_token_ids`."""

    token_ids: list[int] = _absent()
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
    prompt_token_ids: list[int] = _absent()
    """With `return_token_ids`: those of the prompt."""
    prompt_logprobs: PromptLogprobs = _absent()
    """With `prompt_logprobs`: for each token of the prompt but the first, logprobs by token id."""


class FunctionDelta(Part):
    """More of a call."""

    name: str = _absent()
    """Of the function, once."""
    arguments: str = _absent()
    """More of its arguments."""


class ToolCallDelta(Part):
    """More of the calls."""

    index: int
    """Of the call."""
    id: str = _absent()
    """When it begins."""
    type: Literal["function"] = _absent()
    """When it begins."""
    function: FunctionDelta
    """More of it."""


class MessageDelta(Part):
    """More of the assistant's turn."""

    role: Literal["assistant"] = _absent()
    """In the first chunk."""
    content: str | None = _absent_or_null()
    """More text; null where an answer that must be calls has none."""
    reasoning: str = _absent()
    """More thoughts."""
    reasoning_content: str = _absent()
    """The same by another name."""
    tool_calls: list[ToolCallDelta] = _absent()
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
    stop_reason: StopReason = _absent_or_null()
    """The stop string or stop token that ended it, if one did."""


class ChatCompletionChunk(_Answer):
    """A part of the answers."""

    object: Literal["chat.completion.chunk"]
    """Always."""
    choices: list[ChatChunkChoice]
    """One; none where usage is told."""
    usage: Usage | None = _absent_or_null()
    """With `stream_options.include_usage`, in the last chunk; with `continuous_usage_stats`, in
    all."""
    prompt_token_ids: list[int] = _absent()
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
    stop_reason: StopReason = _absent_or_null()
    """The stop string or stop token that ended it, if one did."""
    prompt_token_ids: list[int] = _absent()
    """With `return_token_ids`: those of its prompt, in its first chunk."""
    prompt_logprobs: PromptLogprobs = _absent()
    """With `prompt_logprobs`: for each token of the prompt but the first, logprobs by token id."""


class Completion(_Answer):
    """Texts that go on from prompts; a chunk of a stream looks the same."""

    object: Literal["text_completion"]
    """Always."""
    choices: list[CompletionChoice]
    """For each prompt as many as `n`."""
    usage: Usage | None = _absent_or_null()
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


class Response(Part):
    """The answer of a turn. It also repeats what was asked."""

    model_config = ConfigDict(extra="allow")

    id: str
    """To ask for it again, or to go on from it."""
    object: Literal["response"]
    """Always."""
    created_at: int
    """When, in seconds since 1970."""
    status: str
    """completed; incomplete, where a limit has cut it; in_progress, in events."""
    error: dict[str, Any] | None
    """What went wrong, if something did."""
    incomplete_details: dict[str, Any] | None
    """Which limit has cut it."""
    model: str
    """The served model."""
    output: list[dict[str, Any]]
    """Items: thoughts, messages, calls."""


class ResponseEvent(Part):
    """An event of a response; the specification of OpenAI's Responses has the fields of each."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Such as response.output_text.delta."""
    sequence_number: int = _absent()
    """From 0."""


class InputItems(Part):
    """Items of a response's input."""

    object: Literal["list"]
    """Always."""
    data: list[dict[str, Any]]
    """The items."""
    first_id: str
    """Of the first item; empty if there is none."""
    last_id: str
    """Of the last item; empty if there is none."""
    has_more: bool
    """Whether there are items after it."""


class DeletedResponse(Part):
    """It is forgotten."""

    id: str
    """Of the response."""
    object: Literal["response"]
    """Always."""
    deleted: Literal[True]
    """Always."""


class Tokens(Part):
    """A text as tokens."""

    count: int
    """How many."""
    max_model_len: int | None
    """How many the model takes, with its answer."""
    tokens: list[int]
    """Their ids."""
    token_strs: list[str] = _absent()
    """With `return_token_strs`: their texts."""


class Text(Part):
    """Tokens as text."""

    prompt: str
    """The text."""


class Alive(Part):
    """This process is alive."""

    status: Literal["alive"]
    """Always."""


class ReadyScheduler(Part):
    """The scheduler, seen from this router."""

    connected: bool
    """Whether it is."""
    incarnation: str | None
    """Names its process; null while it is not connected."""
    draining: bool
    """Whether it accepts nothing new."""
    status_age_s: float | None
    """Seconds since it last said how the cell is; null if it has not."""


class ReadyReplica(Part):
    """An attached worker, or several that serve as one."""

    replica_id: str
    """Its name."""
    epoch: str
    """Of its attachment."""
    alive: bool
    """Whether its step is within its deadline or, without one, it was seen lately."""
    last_seen_s: float
    """Seconds since it last said anything."""
    step_age_s: float | None
    """Seconds that its step in flight has run; null if there is none."""
    step_patience_s: float | None
    """Seconds that it may run."""
    num_steps: int
    """Since it attached."""
    num_generated_tokens: int
    """Since it attached."""
    num_vectors: int
    """Since it attached."""


class ReadyProbe(Part):
    """The token that this router asks for when nothing else is computed."""

    after_s: float
    """Seconds without a step or a token after which it is."""
    on_its_way_s: float | None
    """Seconds since it was sent; null if none is on its way."""
    last_answer_age_s: float | None
    """Seconds since one was answered; null if none was."""
    last_failure: str | None
    """Why the last one was not; null if it was."""


class ReadyDetails(Part):
    """The numbers behind an answer of /ready."""

    draining: bool
    """Whether this router accepts nothing new."""
    samples_in_flight: int
    """Answers that are being generated for its clients."""
    scheduler: ReadyScheduler
    """Who says what is computed next."""
    replicas: list[ReadyReplica]
    """Who computes."""
    last_step_age_s: float | None
    """Seconds since a step or a token was last heard of; null if none was."""
    last_token_age_s: float | None
    """Seconds since a token, or a vector, was; null if none was."""
    probe: ReadyProbe
    """What is done when nothing else is."""


class Ready(Part):
    """A request would be answered."""

    status: Literal["ready"]
    """Always."""
    details: ReadyDetails = _absent()
    """With `verbose`."""


class Load(Part):
    """What this process is doing."""

    server_load: int
    """Requests that it is answering."""


class Version(Part):
    """What this server is."""

    version: str
    """Of Quire."""
