"""Whatever is wrong is refused in one voice: a table of what is said of it, over all endpoints.

Each row has the status, the field, the code and the whole message.
"""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.anthropic.messages import count_tokens, parse_messages
from gateway.errors import Fault, RequestError
from gateway.model import Model
from gateway.openai.chat import parse_chat
from gateway.openai.completions import parse_completion
from gateway.openai.embeddings import parse_embeddings
from gateway.openai.errors import ERROR_KINDS
from gateway.openai.responses import StoredResponse, parse_response
from gateway.openai.tokens import detokenize, tokenize
from tests.gateway.tiny_model import MAX_MODEL_LEN

HELLO = [{"role": "user", "content": "hello"}]
THOUGHT = {"type": "reasoning_text", "text": "hm"}
DIM = 4
UNKNOWN = "unknown_parameter"
UNSERVED = "unsupported_parameter"
MISSING = "missing_required_parameter"
TOO_LONG = "context_length_exceeded"
TEXTS = "a string, an array of strings, an array of tokens or an array of arrays of tokens"
EFFORTS = '["none", "minimal", "low", "medium", "high", "xhigh", "max"]'
FORMATS = '["text", "json_object", "json_schema"]'


def nothing_is_stored(response_id: str) -> StoredResponse:
    message = f'response "{response_id}" is not stored here'
    raise RequestError(Fault.UNKNOWN_RESPONSE, message)


def drawn(parse: Callable[..., Any], *more: Any) -> Callable[[bytes, Model], Any]:
    def read(content: bytes, model: Model) -> Any:
        return parse(content, model, MAX_MODEL_LEN, "r1", random.Random(), *more)

    return read


ENDPOINTS: Mapping[str, tuple[dict[str, Any], Callable[[bytes, Model], Any]]] = {
    # a name: a body that is right, and what reads it
    "chat": ({"messages": HELLO}, drawn(parse_chat)),
    "completion": ({"prompt": "a"}, drawn(parse_completion)),
    "embedding": (
        {"input": "a"},
        lambda content, model: parse_embeddings(content, model, MAX_MODEL_LEN, DIM, "r1"),
    ),
    "response": ({"input": "a"}, drawn(parse_response, nothing_is_stored)),
    "message": ({"messages": HELLO, "max_tokens": 4}, drawn(parse_messages)),
    "count": ({"messages": HELLO}, count_tokens),
    "tokenize": ({"prompt": "a"}, lambda content, model: tokenize(content, model, MAX_MODEL_LEN)),
    "tokenize_chat": (
        {"messages": HELLO},
        lambda content, model: tokenize(content, model, MAX_MODEL_LEN),
    ),
    "detokenize": ({"tokens": [5]}, detokenize),
}

Row = tuple[dict[str, Any], int, str, str | None, str]
WRONG_FORMATS: list[Row] = [
    # of Messages, and of their count
    (
        {"output_config": {"format": {"type": "text"}}},
        400,
        "output_config.format.type",
        None,
        'output_config.format.type is "text"; it must be "json_schema"',
    ),
    (
        {"output_config": {"format": {"type": "json_schema"}}},
        400,
        "output_config.format.schema",
        MISSING,
        "output_config.format.schema is missing",
    ),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {}, "shema": {}}}},
        400,
        "output_config.format.shema",
        UNKNOWN,
        (
            "output_config.format.shema is not a field of this endpoint; "
            "did you mean output_config.format.schema?"
        ),
    ),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}},
        400,
        "output_config.format.schema",
        None,
        (
            "output_config.format.schema is not a JSON schema that can be enforced: "
            'Unimplemented keys: ["uniqueItems"]'
        ),
    ),
]
ROWS: Mapping[str, list[Row]] = {
    # an endpoint: what is wrong with a body, and its status, field, code and message
    "chat": [
        (
            {"messages": [{"role": "user", "content": "x", "refusal": "no"}]},
            400,
            "messages[0].refusal",
            None,
            "messages[0].refusal is there; only a message of role assistant has it",
        ),
        ({"messages": None}, 400, "messages", MISSING, "messages is missing"),
        (
            {"messages": []},
            400,
            "messages",
            None,
            "messages has 0 entries; it must have at least 1",
        ),
        ({"messages": "hi"}, 400, "messages", None, 'messages is "hi"; it must be an array'),
        ({"messages": [3]}, 400, "messages[0]", None, "messages[0] is 3; it must be an object"),
        (
            {"messages": [{"content": "x"}]},
            400,
            "messages[0].role",
            MISSING,
            "messages[0].role is missing",
        ),
        (
            {"messages": [{"role": None, "content": "x"}]},
            400,
            "messages[0].role",
            MISSING,
            "messages[0].role is missing",
        ),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            400,
            "messages[0].role",
            None,
            (
                'messages[0].role is "robot"; it must be one of ["developer", '
                '"system", "user", "assistant", "tool"]'
            ),
        ),
        (
            {"messages": [{"role": "user"}]},
            400,
            "messages[0].content",
            MISSING,
            "messages[0].content is missing",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            400,
            "messages[0].content",
            None,
            "messages[0].content is 5; it must be a string or an array of text parts",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages[0].content[0].type",
            None,
            'messages[0].content[0].type is "image_url"; this server accepts only text parts',
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            400,
            "messages[0].tool_call_id",
            MISSING,
            "messages[0].tool_call_id is missing",
        ),
        (
            {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
            400,
            "messages[0].audio",
            UNSERVED,
            'messages[0].audio is {"id": "a"}; it is not supported by this server',
        ),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
            400,
            "messages[0].function_call",
            UNSERVED,
            'messages[0].function_call is {"name": "f"}; it is not supported by this server',
        ),
        (
            {"model": "gpt-5"},
            404,
            "model",
            "model_not_found",
            'model "gpt-5" does not exist; this server has "tiny"',
        ),
        ({"model": 5}, 400, "model", None, "model is 5; it must be a string"),
        (
            {"temprature": 1},
            400,
            "temprature",
            UNKNOWN,
            "temprature is not a field of this endpoint; did you mean temperature?",
        ),
        (
            {"prompt": "x"},
            400,
            "prompt",
            UNKNOWN,
            "prompt is not a field of this endpoint; did you mean messages?",
        ),
        ({"best_of": 2}, 400, "best_of", UNKNOWN, "best_of is not a field of this endpoint"),
        ({"frequency": 1}, 400, "frequency", UNKNOWN, "frequency is not a field of this endpoint"),
        (
            {"x" * 200: 1},
            400,
            '"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…',
            UNKNOWN,
            '"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… is not a field of this endpoint',
        ),
        ({"a b": 1}, 400, '"a b"', UNKNOWN, '"a b" is not a field of this endpoint'),
        (
            {"temperature": 2.5},
            400,
            "temperature",
            None,
            "temperature is 2.5; it must be at most 2",
        ),
        (
            {"temperature": "hot"},
            400,
            "temperature",
            None,
            'temperature is "hot"; it must be a number',
        ),
        ({"top_p": 0}, 400, "top_p", None, "top_p is 0; it must be above 0"),
        ({"top_k": -2}, 400, "top_k", None, "top_k is -2; it must be at least -1"),
        ({"min_p": 1.5}, 400, "min_p", None, "min_p is 1.5; it must be at most 1"),
        ({"n": 0}, 400, "n", None, "n is 0; it must be at least 1"),
        ({"n": 129}, 400, "n", None, "n is 129; it must be at most 128"),
        ({"n": True}, 400, "n", None, "n is true; it must be an integer"),
        ({"max_tokens": 0}, 400, "max_tokens", None, "max_tokens is 0; it must be at least 1"),
        (
            {"max_tokens": 300},
            400,
            "max_tokens",
            TOO_LONG,
            (
                "max_tokens is 300 and the prompt has 14 tokens; this model accepts at "
                "most 256 for both together"
            ),
        ),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            400,
            "max_tokens",
            None,
            "max_tokens is 3 and max_completion_tokens is 4; there must be one of them",
        ),
        (
            {"max_completion_tokens": 0},
            400,
            "max_completion_tokens",
            None,
            "max_completion_tokens is 0; it must be at least 1",
        ),
        ({"min_tokens": -1}, 400, "min_tokens", None, "min_tokens is -1; it must be at least 0"),
        (
            {"presence_penalty": 2.1},
            400,
            "presence_penalty",
            None,
            "presence_penalty is 2.1; it must be at most 2",
        ),
        (
            {"frequency_penalty": -2.1},
            400,
            "frequency_penalty",
            None,
            "frequency_penalty is -2.1; it must be at least -2",
        ),
        (
            {"repetition_penalty": 0},
            400,
            "repetition_penalty",
            None,
            "repetition_penalty is 0; it must be above 0",
        ),
        ({"seed": 1.5}, 400, "seed", None, "seed is 1.5; it must be an integer"),
        (
            {"seed": 1 << 64},
            400,
            "seed",
            None,
            "seed is 18446744073709551616; it must be at most 18446744073709551615",
        ),
        (
            {"logit_bias": {"x": 1}},
            400,
            "logit_bias",
            None,
            'logit_bias has key "x"; keys must be token ids',
        ),
        (
            {"logit_bias": {"400": 1}},
            400,
            "logit_bias",
            None,
            "logit_bias has 400; token ids of this model are 0 to 399",
        ),
        (
            {"logit_bias": {"5": 101}},
            400,
            "logit_bias[5]",
            None,
            "logit_bias[5] is 101; it must be at most 100",
        ),
        ({"stop": ["x"] * 17}, 400, "stop", None, "stop has 17 strings; it must have at most 16"),
        (
            {"stop": ""},
            400,
            "stop",
            None,
            "stop has a string of 0 characters; each must have 1 to 1024",
        ),
        ({"stop": 7}, 400, "stop", None, "stop is 7; it must be a string or an array of strings"),
        (
            {"stop_token_ids": [400]},
            400,
            "stop_token_ids",
            None,
            "stop_token_ids has 400; token ids of this model are 0 to 399",
        ),
        ({"logprobs": 3}, 400, "logprobs", None, "logprobs is 3; it must be true or false"),
        (
            {"top_logprobs": 3},
            400,
            "top_logprobs",
            None,
            "top_logprobs is 3; it needs logprobs to be true",
        ),
        (
            {"logprobs": True, "top_logprobs": 21},
            400,
            "top_logprobs",
            None,
            "top_logprobs is 21; it must be at most 20",
        ),
        ({"stream": "yes"}, 400, "stream", None, 'stream is "yes"; it must be true or false'),
        (
            {"stream_options": {}},
            400,
            "stream_options",
            None,
            "stream_options is given; it needs stream to be true",
        ),
        (
            {"stream": True, "stream_options": {"include_usages": True}},
            400,
            "stream_options.include_usages",
            UNKNOWN,
            (
                "stream_options.include_usages is not a field of this endpoint; did you mean "
                "stream_options.include_usage?"
            ),
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            400,
            "stream_options.include_obfuscation",
            None,
            "stream_options.include_obfuscation is true; it must be false",
        ),
        ({"store": True}, 400, "store", None, "store is true; it must be false"),
        (
            {"service_tier": "flex"},
            400,
            "service_tier",
            None,
            'service_tier is "flex"; it must be one of ["auto", "default"]',
        ),
        ({"verbosity": "low"}, 400, "verbosity", None, 'verbosity is "low"; it must be "medium"'),
        (
            {"reasoning_effort": "huge"},
            400,
            "reasoning_effort",
            None,
            f'reasoning_effort is "huge"; it must be one of {EFFORTS}',
        ),
        (
            {"reasoning_effort": "high"},
            400,
            "reasoning_effort",
            None,
            (
                'reasoning_effort is "high"; the chat template of model "tiny" cannot '
                "be told how much to think"
            ),
        ),
        (
            {"functions": [{"name": "f"}]},
            400,
            "functions",
            UNSERVED,
            'functions is [{"name": "f"}]; it is not supported by this server',
        ),
        (
            {"function_call": {"name": "f"}},
            400,
            "function_call",
            UNSERVED,
            'function_call is {"name": "f"}; it is not supported by this server',
        ),
        (
            {"modalities": ["text", "audio"]},
            400,
            "modalities[1]",
            None,
            'modalities[1] is "audio"; it must be "text"',
        ),
        (
            {"audio": {"voice": "alloy"}},
            400,
            "audio",
            UNSERVED,
            'audio is {"voice": "alloy"}; it is not supported by this server',
        ),
        (
            {"prediction": {"type": "content"}},
            400,
            "prediction",
            UNSERVED,
            'prediction is {"type": "content"}; it is not supported by this server',
        ),
        (
            {"web_search_options": {}},
            400,
            "web_search_options",
            UNSERVED,
            "web_search_options is {}; it is not supported by this server",
        ),
        (
            {"prompt_cache_retention": "24h"},
            400,
            "prompt_cache_retention",
            None,
            'prompt_cache_retention is "24h"; it must be "in_memory"',
        ),
        ({"metadata": {"a": 1}}, 400, "metadata.a", None, "metadata.a is 1; it must be a string"),
        (
            {"metadata": {str(key): "" for key in range(17)}},
            400,
            "metadata",
            None,
            "metadata has 17 keys; it must have at most 16",
        ),
        (
            {"metadata": {"k": "v" * 513}},
            400,
            "metadata",
            None,
            'metadata has "k" with 1 and 513 characters; keys must have at most 64, values 512',
        ),
        (
            {"chat_template": "{{ 1 }}"},
            400,
            "chat_template",
            UNSERVED,
            'chat_template is "{{ 1 }}"; it is not supported by this server',
        ),
        (
            {"logits_processors": ["x"]},
            400,
            "logits_processors",
            UNSERVED,
            'logits_processors is ["x"]; it is not supported by this server',
        ),
        (
            {"guided_decoding_backend": "outlines"},
            400,
            "guided_decoding_backend",
            UNSERVED,
            'guided_decoding_backend is "outlines"; it is not supported by this server',
        ),
        ({"tools": {}}, 400, "tools", None, "tools is {}; it must be an array"),
        (
            {"tools": [{"type": "web_search"}]},
            400,
            "tools[0].type",
            None,
            'tools[0].type is "web_search"; this server has only functions',
        ),
        (
            {"tools": [{"type": "function"}]},
            400,
            "tools[0].function",
            MISSING,
            "tools[0].function is missing",
        ),
        (
            {"tools": [{"type": "function", "function": {}}]},
            400,
            "tools[0].function.name",
            MISSING,
            "tools[0].function.name is missing",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]},
            400,
            "tools[0].function.strict",
            None,
            "tools[0].function.strict is 1; it must be true or false",
        ),
        (
            {"tool_choice": "perhaps"},
            400,
            "tool_choice",
            None,
            (
                'tool_choice is "perhaps"; it must be one of ["none", "auto", '
                '"required"] or an object of type "function"'
            ),
        ),
        (
            {"tool_choice": "required"},
            400,
            "tool_choice",
            None,
            "tool_choice asks for a call, and tools has 0 entries",
        ),
        (
            {"response_format": {}},
            400,
            "response_format.type",
            MISSING,
            "response_format.type is missing",
        ),
        (
            {"response_format": {"type": "xml"}},
            400,
            "response_format.type",
            None,
            f'response_format.type is "xml"; it must be one of {FORMATS}',
        ),
        (
            {"response_format": {"type": "json_schema"}},
            400,
            "response_format.json_schema",
            MISSING,
            "response_format.json_schema is missing",
        ),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            400,
            "response_format.schema",
            UNKNOWN,
            "response_format.schema is not a field of this endpoint",
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "a"}}},
            400,
            "response_format.json_schema",
            UNKNOWN,
            "response_format.json_schema is not a field of this endpoint",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "shema": {}}}},
            400,
            "response_format.json_schema.shema",
            UNKNOWN,
            (
                "response_format.json_schema.shema is not a field of this endpoint; "
                "did you mean response_format.json_schema.schema?"
            ),
        ),
        (
            {"structured_outputs": {"regex": 0}},
            400,
            "structured_outputs.regex",
            None,
            "structured_outputs.regex is 0; it must be a string",
        ),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            400,
            "structured_outputs.structural_tag",
            UNSERVED,
            'structured_outputs.structural_tag is "x"; it is not supported by this server',
        ),
        (
            {"guided_regex": "("},
            400,
            "guided_regex",
            None,
            "guided_regex is not a regular expression that can be enforced: unclosed group",
        ),
        (
            {"guided_choice": []},
            400,
            "guided_choice",
            None,
            "guided_choice has 0 entries; it must have 1 to 1000",
        ),
        (
            {"cache_salt": "a b"},
            400,
            "cache_salt",
            None,
            "cache_salt is \"a b\"; it must be 1 to 64 letters, digits, '-' or '_'",
        ),
        (
            {"request_id": "a\nb"},
            400,
            "request_id",
            None,
            'request_id is "a\\nb"; it must be 1 to 128 visible ASCII characters',
        ),
        (
            {"priority": 2147483648},
            400,
            "priority",
            None,
            "priority is 2147483648; it must be at most 2147483647",
        ),
        (
            {"truncate_prompt_tokens": 0},
            400,
            "truncate_prompt_tokens",
            None,
            "truncate_prompt_tokens is 0; it must be at least 1, or -1 for as many as fit",
        ),
        (
            {"prompt_logprobs": 21},
            400,
            "prompt_logprobs",
            None,
            "prompt_logprobs is 21; it must be at most 20",
        ),
        (
            {"prompt_logprobs": 0, "stream": True},
            400,
            "prompt_logprobs",
            None,
            "prompt_logprobs is 0; it needs stream to be false",
        ),
    ],
    "completion": [
        (
            {"prompt_logprobs": 0, "stream": True},
            400,
            "prompt_logprobs",
            None,
            "prompt_logprobs is 0; it needs stream to be false",
        ),
        ({"prompt": None}, 400, "prompt", MISSING, "prompt is missing"),
        ({"prompt": ""}, 400, "prompt", None, "prompt has 0 tokens; it must have at least 1"),
        ({"prompt": []}, 400, "prompt", None, f"prompt is []; it must be {TEXTS}"),
        ({"prompt": {}}, 400, "prompt", None, f"prompt is {{}}; it must be {TEXTS}"),
        (
            {"prompt": [400]},
            400,
            "prompt",
            None,
            "prompt has 400; token ids of this model are 0 to 399",
        ),
        ({"prompt": ["a", 1]}, 400, "prompt", None, f'prompt is ["a", 1]; it must be {TEXTS}'),
        (
            {"prompt": [5] * 300},
            400,
            "prompt",
            TOO_LONG,
            (
                "the prompt has 300 tokens; this model accepts at most 256 for prompt "
                "and output together"
            ),
        ),
        (
            {"messages": HELLO},
            400,
            "messages",
            UNKNOWN,
            "messages is not a field of this endpoint; did you mean prompt?",
        ),
        (
            {"suffix": "x"},
            400,
            "suffix",
            UNSERVED,
            'suffix is "x"; it is not supported by this server',
        ),
        ({"logprobs": 21}, 400, "logprobs", None, "logprobs is 21; it must be at most 20"),
        ({"logprobs": True}, 400, "logprobs", None, "logprobs is true; it must be an integer"),
        (
            {"best_of": 2, "n": 3},
            400,
            "best_of",
            None,
            "best_of is 2; it must be at least n, which is 3",
        ),
        (
            {"best_of": 2, "stream": True},
            400,
            "best_of",
            None,
            (
                "best_of is 2 and n is 1; a stream cannot wait for the best: they must "
                "be equal, or stream false"
            ),
        ),
        ({"max_tokens": 0}, 400, "max_tokens", None, "max_tokens is 0; it must be at least 1"),
        ({"echo": 1}, 400, "echo", None, "echo is 1; it must be true or false"),
        (
            {"use_beam_search": True, "stream": True},
            400,
            "stream",
            None,
            "stream is true; with use_beam_search it is not supported",
        ),
        (
            {"length_penalty": 2},
            400,
            "length_penalty",
            None,
            "length_penalty is 2; it needs use_beam_search to be true",
        ),
        (
            {"prompt_embeds": "x"},
            400,
            "prompt_embeds",
            UNSERVED,
            'prompt_embeds is "x"; it is not supported by this server',
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            400,
            "tools",
            UNKNOWN,
            "tools is not a field of this endpoint",
        ),
        (
            {"max_completion_tokens": 5},
            400,
            "max_completion_tokens",
            UNKNOWN,
            "max_completion_tokens is not a field of this endpoint; did you mean max_tokens?",
        ),
    ],
    "embedding": [
        ({"input": None}, 400, "input", MISSING, "input is missing"),
        ({"input": ""}, 400, "input", None, 'input is ""; it must have at least 1 character'),
        (
            {"input": ["a", ""]},
            400,
            "input[1]",
            None,
            'input[1] is ""; it must have at least 1 character',
        ),
        ({"input": []}, 400, "input", None, f"input is []; it must be {TEXTS}"),
        ({"input": [[]]}, 400, "input", None, "input has 0 tokens; it must have at least 1"),
        ({"input": {}}, 400, "input", None, f"input is {{}}; it must be {TEXTS}"),
        (
            {"input": [400]},
            400,
            "input",
            None,
            "input has 400; token ids of this model are 0 to 399",
        ),
        (
            {"input": ["a"] * 2049},
            400,
            "input",
            None,
            "input has 2049 entries; it must have at most 2048",
        ),
        (
            {"encoding_format": "int8"},
            400,
            "encoding_format",
            None,
            'encoding_format is "int8"; it must be one of ["float", "base64"]',
        ),
        ({"dimensions": 0}, 400, "dimensions", None, "dimensions is 0; it must be at least 1"),
        ({"dimensions": 5}, 400, "dimensions", None, "dimensions is 5; it must be at most 4"),
        (
            {"dimensions": 2},
            400,
            "dimensions",
            None,
            (
                'dimensions is 2; vectors of model "tiny" have 4 numbers, and it was '
                "not trained for fewer"
            ),
        ),
        (
            {"messages": HELLO},
            400,
            "messages",
            UNSERVED,
            (
                'messages is [{"role": "user", "content": "hello"}]; it is not '
                "supported by this server"
            ),
        ),
        (
            {"truncate_prompt_tokens": 0},
            400,
            "truncate_prompt_tokens",
            None,
            "truncate_prompt_tokens is 0; it must be at least 1, or -1 for as many as fit",
        ),
        (
            {"temperature": 1},
            400,
            "temperature",
            UNKNOWN,
            "temperature is not a field of this endpoint",
        ),
        (
            {"model": "other"},
            404,
            "model",
            "model_not_found",
            'model "other" does not exist; this server has "tiny"',
        ),
    ],
    "response": [
        (
            {"input": [{"type": "reasoning", "content": [THOUGHT], "summary": "x"}]},
            400,
            "input[0].summary",
            None,
            'input[0].summary is "x"; it must be an array',
        ),
        (
            {"input": [{"type": "reasoning", "content": [THOUGHT], "summary": [{}]}]},
            400,
            "input[0].summary[0].text",
            MISSING,
            "input[0].summary[0].text is missing",
        ),
        (
            {"input": [{"type": "reasoning", "summary": [THOUGHT]}]},
            400,
            "input[0].summary[0].type",
            None,
            'input[0].summary[0].type is "reasoning_text"; it must be "summary_text"',
        ),
        (
            {"input": [HELLO[0] | {"id": 0}]},
            400,
            "input[0].id",
            None,
            "input[0].id is 0; it must be a string",
        ),
        (
            {"input": [HELLO[0] | {"id": "a"}, HELLO[0], HELLO[0] | {"id": "a"}]},
            400,
            "input[2].id",
            None,
            'input[2].id is "a", like one before it',
        ),
        ({"input": None}, 400, "input", MISSING, "input is missing"),
        ({"input": 3}, 400, "input", None, "input is 3; it must be a string or an array"),
        (
            {"input": [{"type": "item_reference"}]},
            400,
            "input[0].type",
            None,
            (
                'input[0].type is "item_reference"; this server accepts only message, '
                "function_call, function_call_output, reasoning"
            ),
        ),
        (
            {"max_tokens": 5},
            400,
            "max_tokens",
            UNKNOWN,
            "max_tokens is not a field of this endpoint; did you mean max_output_tokens?",
        ),
        (
            {"max_output_tokens": 0},
            400,
            "max_output_tokens",
            None,
            "max_output_tokens is 0; it must be at least 1",
        ),
        (
            {"messages": HELLO},
            400,
            "messages",
            UNKNOWN,
            "messages is not a field of this endpoint; did you mean input?",
        ),
        ({"n": 2}, 400, "n", UNSERVED, "n is 2; it is not supported by this server"),
        ({"metadata": []}, 400, "metadata", None, "metadata is []; it must be an object"),
        (
            {"text": {"format": {"type": "xml"}}},
            400,
            "text.format.type",
            None,
            f'text.format.type is "xml"; it must be one of {FORMATS}',
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "shema": {}}}},
            400,
            "text.format.shema",
            UNKNOWN,
            "text.format.shema is not a field of this endpoint; did you mean text.format.schema?",
        ),
        (
            {"stream_options": {"include_usage": True}},
            400,
            "stream_options",
            None,
            "stream_options is given; it needs stream to be true",
        ),
        (
            {"chat_template_kwargs": {"x": "\ud800"}},
            400,
            "chat_template_kwargs",
            None,
            "chat_template_kwargs has a lone surrogate; it must be Unicode",
        ),
        (
            {"chat_template_kwargs": {"x": "a" * 65_536}},
            400,
            "chat_template_kwargs",
            None,
            "chat_template_kwargs has 65545 bytes; it must have at most 65536",
        ),
        (
            {"text": {"verbosity": "low"}},
            400,
            "text.verbosity",
            None,
            'text.verbosity is "low"; it must be "medium"',
        ),
        (
            {"reasoning": {"effort": "huge"}},
            400,
            "reasoning.effort",
            None,
            f'reasoning.effort is "huge"; it must be one of {EFFORTS}',
        ),
        (
            {"reasoning": {"efort": "low"}},
            400,
            "reasoning.efort",
            UNKNOWN,
            "reasoning.efort is not a field of this endpoint; did you mean reasoning.effort?",
        ),
        (
            {"tools": [{"type": "web_search"}]},
            400,
            "tools[0].type",
            None,
            'tools[0].type is "web_search"; this server has only functions',
        ),
        (
            {"previous_response_id": "resp_x"},
            404,
            "previous_response_id",
            "response_not_found",
            'response "resp_x" is not stored here',
        ),
        (
            {"prompt": {"id": "x"}},
            400,
            "prompt",
            UNSERVED,
            'prompt is {"id": "x"}; it is not supported by this server',
        ),
    ],
    "message": [
        *WRONG_FORMATS,
        ({"max_tokens": None}, 400, "max_tokens", MISSING, "max_tokens is missing"),
        ({"max_tokens": 0}, 400, "max_tokens", None, "max_tokens is 0; it must be at least 1"),
        (
            {"messages": []},
            400,
            "messages",
            None,
            "messages has 0 entries; it must have at least 1",
        ),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            400,
            "messages[0].role",
            None,
            'messages[0].role is "robot"; it must be one of ["user", "assistant", "system"]',
        ),
        (
            {"messages": [{"role": "user"}]},
            400,
            "messages[0].content",
            MISSING,
            "messages[0].content is missing",
        ),
        (
            {"stop": "x"},
            400,
            "stop",
            UNKNOWN,
            "stop is not a field of this endpoint; did you mean stop_sequences?",
        ),
        ({"n": 2}, 400, "n", UNKNOWN, "n is not a field of this endpoint"),
        (
            {"stop_sequences": "x"},
            400,
            "stop_sequences",
            None,
            'stop_sequences is "x"; it must be an array',
        ),
        ({"temperature": 3}, 400, "temperature", None, "temperature is 3; it must be at most 2"),
        (
            {"tool_choice": {"type": "perhaps"}},
            400,
            "tool_choice.type",
            None,
            'tool_choice.type is "perhaps"; it must be one of ["auto", "any", "tool", "none"]',
        ),
        ({"tools": [{}]}, 400, "tools[0].name", MISSING, "tools[0].name is missing"),
        (
            {"service_tier": "batch"},
            400,
            "service_tier",
            None,
            'service_tier is "batch"; it must be one of ["auto", "standard_only"]',
        ),
        (
            {"mcp_servers": [{}]},
            400,
            "mcp_servers",
            UNSERVED,
            "mcp_servers is [{}]; it is not supported by this server",
        ),
        ({"top_k": "5"}, 400, "top_k", None, 'top_k is "5"; it must be an integer'),
    ],
    "count": [
        *WRONG_FORMATS,
        ({"messages": None}, 400, "messages", MISSING, "messages is missing"),
        (
            {"max_tokens": 5},
            400,
            "max_tokens",
            UNKNOWN,
            "max_tokens is not a field of this endpoint",
        ),
        ({"system": 5}, 400, "system", None, "system is 5; it must be a string or an array"),
    ],
    "tokenize": [
        ({"prompt": None}, 400, "prompt", MISSING, "prompt is missing"),
        ({"prompt": 3}, 400, "prompt", None, "prompt is 3; it must be a string"),
        (
            {"messages": HELLO},
            400,
            "prompt",
            None,
            "there are both prompt and messages; there must be one of them",
        ),
        (
            {"temperature": 1},
            400,
            "temperature",
            UNKNOWN,
            "temperature is not a field of this endpoint",
        ),
        (
            {"model": "other"},
            404,
            "model",
            "model_not_found",
            'model "other" does not exist; this server has "tiny"',
        ),
    ],
    "tokenize_chat": [
        (
            {"messages": []},
            400,
            "messages",
            None,
            "messages has 0 entries; it must have at least 1",
        ),
        (
            {"add_special_tokens": True},
            400,
            "add_special_tokens",
            None,
            "add_special_tokens is true; it must be false",
        ),
        (
            {"max_tokens": 5},
            400,
            "max_tokens",
            UNKNOWN,
            "max_tokens is not a field of this endpoint",
        ),
    ],
    "detokenize": [
        ({"tokens": None}, 400, "tokens", MISSING, "tokens is missing"),
        ({"tokens": "x"}, 400, "tokens", None, 'tokens is "x"; it must be an array'),
        (
            {"tokens": [-1]},
            400,
            "tokens",
            None,
            "tokens has -1; token ids of this model are 0 to 399",
        ),
        ({"tokens": ["a"]}, 400, "tokens[0]", None, 'tokens[0] is "a"; it must be an integer'),
        (
            {"token": [5]},
            400,
            "token",
            UNKNOWN,
            "token is not a field of this endpoint; did you mean tokens?",
        ),
    ],
}


def test_there_are_enough_of_them() -> None:
    assert sum(map(len, ROWS.values())) >= 120
    assert ROWS.keys() == ENDPOINTS.keys()


@pytest.mark.parametrize("name", ENDPOINTS)
def test_what_is_right_is_taken(model: Model, name: str) -> None:
    body, read = ENDPOINTS[name]
    assert read(json.dumps(body).encode(), model)


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, rows in ROWS.items() for row in rows], ids=str
)
def test_what_is_wrong_is_refused(model: Model, name: str, row: Row) -> None:
    said, *expected = row
    body, read = ENDPOINTS[name]
    with pytest.raises(RequestError) as caught:
        read(json.dumps(body | said).encode(), model)
    error = caught.value
    kind = ERROR_KINDS[error.fault]
    assert [kind.status, error.field, kind.code, error.message] == expected
