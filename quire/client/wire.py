"""What people give, as messages of `InferenceService`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protos.channels import KEEPALIVE
from protos.quire.v1 import inference_pb2
from quire.client.chats import chat_prompt
from quire.prompts import Chat, Conversation, Prompt, read_prompt, read_raw_prompt
from quire.sampling import SamplingParams, StructuredOutputsParams

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
    *KEEPALIVE,
    # one that is started now is met soon
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # a connection is one client's own, and ends with it
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a request says beside its prompt and its sampling."""

    model: str = ""
    """Empty: the only one that is served."""
    priority: int = 0
    """Lower is sooner."""
    cache_salt: str = ""
    """Cached prefixes are shared among requests of the same salt."""


def generate_request(
    prompt: Prompt | Conversation | Chat, params: SamplingParams, terms: Terms, *, whole: bool
) -> inference_pb2.GenerateRequest:
    """`whole`: each sample in one piece. Raises ValueError for what is no prompt."""
    request = inference_pb2.GenerateRequest(
        model=terms.model,
        sampling=_sampling_options(params),
        priority=terms.priority,
        cache_salt=terms.cache_salt,
        whole=whole,
    )
    said = read_prompt(prompt)
    if isinstance(said, str):
        request.text = said
    elif isinstance(said, Chat):
        request.chat.CopyFrom(chat_prompt(said))
    else:
        request.tokens.ids.extend(said)
    knows_them = request.WhichOneof("prompt") == "tokens"
    request.return_prompt_token_ids = params.prompt_logprobs is not None or (
        whole and not knows_them
    )
    return request


def embed_request(
    inputs: Sequence[Prompt], dimensions: int | None, terms: Terms
) -> inference_pb2.EmbedRequest:
    """Texts and lists of token ids may be mixed. Raises ValueError for what is neither."""
    request = inference_pb2.EmbedRequest(
        model=terms.model,
        dimensions=dimensions,
        priority=terms.priority,
        cache_salt=terms.cache_salt,
    )
    for number, each in enumerate(inputs):
        said = read_raw_prompt(each, f"inputs[{number}]")
        if isinstance(said, str):
            request.inputs.add(text=said)
        else:
            request.inputs.add(tokens=inference_pb2.TokenIds(ids=said))
    return request


def vectors_of(answer: inference_pb2.EmbedResponse) -> npt.NDArray[np.float32]:
    """`[inputs, dimensions]`, writable."""
    return np.stack([np.frombuffer(each.vector, "<f4") for each in answer.embeddings])


def _sampling_options(params: SamplingParams) -> inference_pb2.SamplingOptions:
    return inference_pb2.SamplingOptions(
        n=params.n,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop=params.stop,
        include_stop_str_in_output=params.include_stop_str_in_output,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        num_logprobs=params.logprobs,
        num_prompt_logprobs=params.prompt_logprobs,
        grammar=_grammar(params.structured_outputs),
        allowed_token_ids=params.allowed_token_ids,
        bad_words=params.bad_words,
        skip_special_tokens=params.skip_special_tokens,
        truncate_prompt_tokens=params.truncate_prompt_tokens,
    )


def _grammar(said: object) -> inference_pb2.Grammar | None:
    if not isinstance(said, StructuredOutputsParams):
        return None  # then it is None: a dict became the object when the parameters were made
    if said.choice is not None:
        kind = inference_pb2.GRAMMAR_KIND_CHOICE
        return inference_pb2.Grammar(kind=kind, choices=said.choice)
    if said.regex is not None:
        return inference_pb2.Grammar(kind=inference_pb2.GRAMMAR_KIND_REGEX, text=said.regex)
    if said.grammar is not None:
        return inference_pb2.Grammar(kind=inference_pb2.GRAMMAR_KIND_LARK, text=said.grammar)
    schema = {"type": "object"} if said.json is None else said.json
    text = json.dumps(dict(schema)) if isinstance(schema, Mapping) else schema
    return inference_pb2.Grammar(kind=inference_pb2.GRAMMAR_KIND_JSON_SCHEMA, text=text)
