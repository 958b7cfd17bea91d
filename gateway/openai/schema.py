"""The request bodies of OpenAI's chats and completions, with vLLM's extra fields."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from gateway import thinking
from gateway.body import Body, Part
from gateway.openai import shapes
from gateway.openai.structure import GuidedBody, StructuredBody

Effort = Literal["none", "minimal", thinking.Effort]

UNSERVED: Mapping[str, Sequence[Any]] = {
    # vLLM's: the values that ask for nothing
    "logits_processors": ([], {}),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "truncation_side": ("left",),
    "guided_json_object": (False,),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "repetition_detection": (),
    "logprob_token_ids": ([],),
    "stream_interval": (1,),
    "watermarking": (False,),
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
}


UNSERVED_IN_CHAT: Mapping[str, Sequence[Any]] = {
    # OpenAI's and vLLM's: the values that ask for nothing
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "documents": ([],),
    "chat_template": (),
    "echo": (False,),
    "include_reasoning": (True,),
    "add_special_tokens": (False,),
    "mm_processor_kwargs": ({},),
}


class StreamOptions(Part):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    """End with a chunk that has no choices but the usage."""
    continuous_usage_stats: bool | None = None
    """Say the usage so far in every chunk."""
    include_obfuscation: Literal[False] | None = None
    """Chunks are not padded to hide their length."""


class SamplingBody(GuidedBody):
    """What every endpoint that generates takes, in OpenAI's and vLLM's words."""

    model: str | None = None
    """The served model; if it is not said, the one there is."""
    temperature: float | None = None
    """How freely tokens are drawn: 0 takes the likeliest, 1 follows the model."""
    top_p: float | None = None
    """Draw from the likeliest tokens that make up this share of the probability."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens; 0 or -1: from all."""
    min_p: float | None = None
    """Draw from tokens at least this share as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Divides the logits of tokens that prompt or output have already; 1 changes nothing."""
    presence_penalty: float = 0
    """Taken from the logits of tokens that the output has already."""
    frequency_penalty: float = 0
    """Taken from a token's logit as often as the output has it."""
    logit_bias: dict[str, float] = Field({})
    """Added to the logits of tokens, by token id: -100 to 100."""
    seed: int | None = None
    """The same seed and request draw the same tokens; if it is not said, chance."""
    min_tokens: int = 0
    """Tokens before the answer may end by an end token."""
    stop: str | list[str] = Field([])
    """Texts that end the answer."""
    stop_token_ids: list[int] = Field([])
    """Tokens that end the answer."""
    include_stop_str_in_output: bool = False
    """Whether the answer shows the text that ended it."""
    ignore_eos: bool = False
    """Go on past the model's end token."""
    allowed_token_ids: list[int] | None = None
    """The only tokens that the answer may have; if it is not said, all."""
    bad_words: list[str] = Field([])
    """Words that the answer must not have."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    stream: bool = False
    """Answer with server-sent events while the text is written."""
    stream_options: StreamOptions | None = None
    """What the stream carries beside the text; needs `stream`."""
    priority: int = 0
    """Lower goes first; only 0 where the server does not order by priority."""
    cache_salt: str | None = None
    """Shares cached prompts only with requests of the same salt."""
    timeout: float | None = None
    """Seconds after which the answer must be complete: what is not, waiting or half said, ends with
    an error; if it is not said, as long as it takes. The X-Request-Timeout header says the same;
    the sooner counts."""
    request_id: str | None = None
    """A name for the request, in the answer's id and the logs; if it is not said, that of the
    X-Request-Id header, or chance."""
    user: str | None = None
    """A label; it changes nothing."""
    safety_identifier: str | None = None
    """A label; it changes nothing."""
    prompt_cache_key: str | None = None
    """A label; prompts that begin alike are found by themselves."""
    prompt_cache_retention: Literal["in_memory"] | None = None
    """How long prompts stay cached: while there is room in memory."""
    service_tier: Literal["auto", "default"] = "auto"
    """All requests are served alike."""

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return self.stream

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of the stream tells the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class GenerationBody(SamplingBody, StructuredBody):
    """What chats and completions share."""

    n: int = 1
    """Answers to give."""
    max_tokens: int | None = None
    """Tokens after which an answer ends; if it is not said, what the model's length leaves."""
    truncate_prompt_tokens: int | None = None
    """Keep the last so many tokens of the prompt; -1: as many as fit; if it is not said, a prompt
    that is too long is refused."""
    prompt_logprobs: int | None = None
    """Also say the logprobs of the prompt's tokens, with so many alternatives each; not in a
    stream."""
    return_token_ids: bool = False
    """Also say the tokens of prompt and answer."""
    use_beam_search: bool = False
    """Search for the likeliest answers with `n` beams (or `best_of`) in place of drawing."""
    length_penalty: float = 1
    """An answer's logprob is divided by its length to this power; needs `use_beam_search`."""
    early_stopping: bool | Literal["never"] = False
    """When the search ends: true, once `n` answers have ended; "never", once none can get better;
    needs `use_beam_search`."""

    def prompt_room(self, max_model_len: int) -> int:
        """Tokens that a prompt may have before it is truncated."""
        return max_model_len if self.truncate_prompt_tokens is None else _MANY


class MessageBody(Part):
    """One turn of a conversation. What else answers have may be sent back, and is not read."""

    model_config = ConfigDict(title="ChatMessage", extra="allow")

    role: Annotated[str, WithJsonSchema(shapes.ROLE)]
    """Who speaks."""
    content: Annotated[Any, WithJsonSchema(shapes.CONTENT)] = None
    """What is said: a text, or parts of text, which are joined by line breaks. Only an assistant
    may say nothing."""
    name: str | None = None
    """Of the speaker, for templates that show it."""
    tool_calls: Annotated[list[Any] | None, WithJsonSchema(shapes.CALLS)] = None
    """An assistant's calls of tools."""
    tool_call_id: str | None = None
    """The call that a tool answers."""
    refusal: str | None = None
    """What an assistant said in place of `content`."""
    reasoning: str | None = None
    """An assistant's thoughts."""
    reasoning_content: str | None = None
    """The same by another name."""


class ConversationBody(Body):
    """What the model is to go on with."""

    messages: list[MessageBody]
    """The conversation, oldest turn first."""
    tools: Annotated[list[Any], WithJsonSchema(shapes.TOOLS)] = Field([])
    """Functions that the model may ask the client to call."""
    tool_choice: Annotated[Any, WithJsonSchema(shapes.TOOL_CHOICE)] = None
    """Whether tools are called: as the model likes (auto, if it is not said), not at all, at least
    one, or this one."""
    parallel_tool_calls: bool = True
    """Whether one answer may have several calls."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """More variables for the model's chat template, such as `enable_thinking`."""
    add_generation_prompt: bool | None = None
    """Begin the assistant's turn; if it is not said, unless `continue_final_message`."""
    continue_final_message: bool = False
    """Go on with the last turn in place of answering it."""
    reasoning_effort: Effort | None = None
    """How much the model thinks, if its chat template can say so; if it is not said, as it
    likes."""


class ChatBody(GenerationBody, ConversationBody):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(title="ChatCompletionRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = {**UNSERVED_IN_CHAT, **UNSERVED}

    max_completion_tokens: int | None = None
    """OpenAI's newer name for `max_tokens`."""
    logprobs: bool = False
    """Say the logprob of every token of the answer."""
    top_logprobs: int | None = None
    """Also say so many alternatives for each token; needs `logprobs`."""
    thinking_token_budget: int | None = None
    """Tokens after which the model's thoughts are ended for it; if it is not said, they may be as
    long as the answer."""
    verbosity: Literal["medium"] | None = None
    """How long answers are is the model's to say."""
    modalities: list[Literal["text"]] = Field(["text"])
    """Answers are text."""
    store: Literal[False] = False
    """Chats are not stored; responses are, see /v1/responses."""
    metadata: dict[str, str] = Field({})
    """Labels, at most 16; they change nothing."""


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    model_config = ConfigDict(title="CompletionRequest")
    unserved: ClassVar[Mapping[str, Sequence[Any]]] = {
        "suffix": ("",),
        "prompt_embeds": (),
        "add_special_tokens": (True,),
        "thinking_token_budget": (),
        **UNSERVED,
    }

    prompt: Annotated[Any, WithJsonSchema(shapes.TEXTS_OR_TOKENS)]
    """What to go on with: a text or its tokens, or several of either."""
    logprobs: int | None = None
    """Say the logprob of every token of the answer, with so many alternatives each."""
    max_tokens: Annotated[int | None, WithJsonSchema({"type": "integer", "minimum": 0})] = None
    """Tokens after which an answer ends; if it is not said, what the model's length leaves. 0 only
    with `echo` or `prompt_logprobs`."""
    echo: bool = False
    """Say the prompt before the answer; with `max_tokens` 0, it alone."""
    best_of: int | None = None
    """Draw so many answers and give the `n` likeliest; if it is not said, `n`; not in a stream."""


_MANY = 1 << 62
