"""Every wrong request is refused with the field, the limit and the value."""

import json
import random
from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.model import Model
from gateway.openai.chat import parse_chat
from gateway.openai.completions import parse_completion
from gateway.openai.errors import ERROR_KINDS, error_body
from gateway.openai.options import WITH_BEAMS
from gateway.openai.schema import ChatBody, CompletionBody
from tests.gateway.tiny_model import MAX_MODEL_LEN

HELLO = [{"role": "user", "content": "hello"}]


def refusal(model: Model, parse: Any, content: bytes) -> tuple[int, str, str | None]:
    """Status, message and field; what may be sent to a client."""
    with pytest.raises(RequestError) as caught:
        parse(content, model, MAX_MODEL_LEN, "r1", random.Random())
    body = error_body(caught.value)["error"]
    assert len(json.dumps(body).encode()) < 1000
    return ERROR_KINDS[caught.value.fault].status, body["message"], body["param"]


def chat_refusal(model: Model, /, **fields: Any) -> tuple[int, str, str | None]:
    return refusal(model, parse_chat, json.dumps({"messages": HELLO, **fields}).encode())


def completion_refusal(model: Model, /, **fields: Any) -> tuple[int, str, str | None]:
    return refusal(model, parse_completion, json.dumps({"prompt": "a", **fields}).encode())


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


NESTED = json.loads('{"a": ' * 100 + "1" + "}" * 100)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value at line 1, column 1"),
        (b"{'model': 1}", "Expecting property name enclosed in double quotes"),
        (b'{"temperature": NaN}', "NaN is not a JSON number"),
        (b'{"temperature": -Infinity}', "-Infinity is not a JSON number"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_what_is_not_json(model: Model, content: bytes, reason: str) -> None:
    status, message, field = refusal(model, parse_chat, content)
    assert (status, field) == (400, None)
    assert message.startswith("the body is not valid JSON: ")
    assert reason in message


@pytest.mark.parametrize("content", [b"[]", b"3", b'"text"', b"null"])
def test_json_that_is_not_an_object(model: Model, content: bytes) -> None:
    status, message, _ = refusal(model, parse_completion, content)
    assert (status, message) == (400, f"the body is {content.decode()}; it must be a JSON object")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages has 0 entries; it must have at least 1"),
        ({"messages": "hi"}, 'messages is "hi"; it must be an array'),
        ({"messages": ["hi"]}, 'messages[0] is "hi"; it must be an object'),
        ({"messages": [{"content": "hi"}]}, "messages[0].role is missing"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"max_tokens": -1}, "max_tokens is -1; it must be at least 1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens is 0; it must be at least 1"),
        ({"max_tokens": "5"}, 'max_tokens is "5"; it must be an integer'),
        ({"max_tokens": 2.5}, "max_tokens is 2.5; it must be an integer"),
        ({"max_tokens": True}, "max_tokens is true; it must be an integer"),
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"n": 10_000}, "n is 10000; it must be at most 128"),
        ({"temperature": -1}, "temperature is -1; it must be at least 0"),
        ({"temperature": 2.5}, "temperature is 2.5; it must be at most 2"),
        ({"temperature": "hot"}, 'temperature is "hot"; it must be a number'),
        ({"top_p": 0}, "top_p is 0; it must be above 0"),
        ({"top_p": 1.1}, "top_p is 1.1; it must be at most 1"),
        ({"top_k": -2}, "top_k is -2; it must be at least -1"),
        ({"min_p": -0.1}, "min_p is -0.1; it must be at least 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"presence_penalty": 3}, "presence_penalty is 3; it must be at most 2"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3; it must be at least -2"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616; it must be at most"),
        ({"logit_bias": {"x": 1}}, 'logit_bias has key "x"; keys must be token ids'),
        ({"logit_bias": {"7": 101}}, "logit_bias[7] is 101; it must be at most 100"),
        ({"logit_bias": {"400": 1}}, "logit_bias has 400; token ids of this model are 0 to 399"),
        ({"logit_bias": {"1": "x"}}, 'logit_bias.1 is "x"; it must be a number'),
        ({"stop": ["x"] * 17}, "stop has 17 strings; it must have at most 16"),
        ({"stop": ""}, "stop has a string of 0 characters; each must have 1 to 1024"),
        ({"stop": [1]}, "stop is [1]; it must be a string or an array of strings"),
        ({"stop_token_ids": [-1]}, "stop_token_ids has -1; token ids of this model are 0 to 399"),
        ({"min_tokens": 9, "max_tokens": 4}, "min_tokens is 9; it must be at most max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs is 3; it needs logprobs to be true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21; it must be at most 20"),
        ({"logprobs": 3}, "logprobs is 3; it must be true or false"),
        ({"stream": "yes"}, 'stream is "yes"; it must be true or false'),
        ({"stream_options": 1}, "stream_options is 1; it must be an object"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens is 0; it must be at least 1, or"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens is -2; it must be at least -1"),
        ({"truncate_prompt_tokens": 257}, "truncate_prompt_tokens is 257; it must be at most 256"),
        ({"cache_salt": "a b"}, 'cache_salt is "a b"; it must be 1 to 64 letters'),
        ({"request_id": "a\nb"}, 'request_id is "a\\nb"; it must be 1 to 128 visible'),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1; it must be at least 0"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21; it must be at most 20"),
        ({"prompt_logprobs": True}, "prompt_logprobs is true; it must be an integer"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs is 1; it needs stream to be f"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs is 0; it needs stream to be f"),
        ({"stream_options": {}}, "stream_options is given; it needs stream to be true"),
        ({"tools": [{"type": "function"}]}, "tools[0].function is missing"),
        ({"tools": ["f"]}, 'tools[0] is "f"; it must be an object'),
        ({"tools": [{"type": "web_search"}]}, 'tools[0].type is "web_search"; this server has'),
        ({"tools": [tool("")]}, 'tools[0] has the name ""; it must be 1 to 64 letters'),
        ({"tools": [tool("a b")]}, 'tools[0] has the name "a b"; it must be 1 to 64 letters'),
        ({"tools": [tool("f" * 65)]}, 'tools[0] has the name "fff'),
        ({"tools": [tool("f"), tool("f")]}, 'tools[1] has the name "f", like one before it'),
        ({"tools": [tool("f", 3)]}, "tools[0].function.parameters is 3; it must be an object"),
        (
            {"tools": [tool("f", {"type": "array"})]},
            'tools[0] has parameters of type "array"; it must be "object"',
        ),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools has 129 entries; it must have at"),
        (
            {"tools": [tool("f", {"description": "x" * 70_000})]},
            "tools[0].parameters has 70019 bytes; it must have at most 65536",
        ),
        (
            {"tools": [tool("f", {"description": "\ud800"})]},
            "tools[0].parameters has a lone surrogate",
        ),
        ({"tools": [tool("f", NESTED)]}, "tools[0].parameters is nested more than 64 deep"),
        (
            {"tools": [tool(f"f{i}", {"description": "x" * 60_000}) for i in range(20)]},
            "tools has 1200380 bytes; it must have at most 1048576",
        ),
        (
            {"tools": [tool("f")]},
            'tools has 1 entry; the chat template of model "tiny" knows no tools; the server can '
            "be started with one that does: --chat-template FILE, or one of its own, such as "
            "--chat-template hermes",
        ),
        (
            {"tools": [tool("f"), tool("g")]},
            'tools has 2 entries; the chat template of model "tiny" knows no tools; ',
        ),
        ({"tool_choice": "required"}, "tool_choice asks for a call, and tools has 0 entries"),
        ({"tool_choice": "perhaps"}, 'tool_choice is "perhaps"; it must be one of'),
        (
            {"tool_choice": {"type": "function", "function": {}}},
            "tool_choice.function.name is missing",
        ),
        (
            {
                "tools": [tool("f")],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            'tool_choice names "g", which is not in tools',
        ),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs is 1; it must be an object"),
        (
            {"chat_template_kwargs": {"messages": []}},
            'chat_template_kwargs has "messages", which is not a client\'s to say',
        ),
        ({"chat_template_kwargs": {"a": NESTED}}, "chat_template_kwargs is nested more than 64"),
        (
            {"chat_template_kwargs": {"a": "x" * 70_000}},
            "chat_template_kwargs has 70009 bytes; it must have at most 65536",
        ),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message is true and add_generation_prompt is true",
        ),
        ({"include_reasoning": False}, "include_reasoning is false; it is not supported"),
        ({"echo": True}, "echo is true; it is not supported"),
        ({"response_format": {"type": "xml"}}, 'response_format.type is "xml"; it must be one of'),
        ({"modalities": ["audio"]}, 'modalities[0] is "audio"; it must be "text"'),
        ({"chat_template": "{{ 1 }}"}, 'chat_template is "{{ 1 }}"; it is not supported'),
    ],
)
def test_wrong_fields_of_chats(model: Model, fields: dict[str, Any], message: str) -> None:
    status, said, field = chat_refusal(model, **fields)
    assert status == 400
    assert said.startswith(message)
    assert field is not None
    assert field.split("[")[0].split(".")[0] in fields


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "robot", "content": "x"}, 'messages[0].role is "robot"; it must be one of'),
        ({"role": "function", "content": "x"}, 'messages[0].role is "function"; it must be one'),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id is missing"),
        ({"role": "tool", "tool_call_id": "1"}, "messages[0].content is missing"),
        (
            {"role": "user", "content": "x", "tool_call_id": "1"},
            "messages[0].tool_call_id is there; only a message of role tool has it",
        ),
        (
            {"role": "user", "content": "x", "tool_calls": [{}]},
            "messages[0].tool_calls is there; only a message of role assistant has it",
        ),
        (
            {"role": "assistant", "tool_calls": [{}] * 129},
            "messages[0].tool_calls has 129 entries; it must have at most 128",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
            "messages[0].tool_calls[0].id is missing",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": 1}}]},
            "messages[0].tool_calls[0].function.name is 1; it must be a string",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}],
            },
            "messages[0].tool_calls[0].function.arguments is {}; it must be a string",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]},
            'messages[0].tool_calls[0].type is "custom"; this server has only functions',
        ),
        ({"role": "user"}, "messages[0].content is missing"),
        ({"role": "user", "content": 5}, "messages[0].content is 5; it must be a string or"),
        ({"role": "user", "content": "\ud800"}, "messages[0].content has a lone surrogate"),
        (
            {"role": "user", "content": "x", "name": "\ud800"},
            "messages[0].name has a lone surrogate",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            'messages[0].content[0].type is "image_url"; this server accepts only text parts',
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": 1}]},
            "messages[0].content[0].text is 1; it must be a string",
        ),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
            "messages[0].tool_calls[0].function is missing",
        ),
    ],
)
def test_wrong_messages(model: Model, message: dict[str, Any], said: str) -> None:
    status, text, _ = chat_refusal(model, messages=[message])
    assert status == 400
    assert text.startswith(said)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": []}, "prompt is []; it must be a string, an array of strings"),
        ({"prompt": ["a", 1]}, 'prompt is ["a", 1]; it must be a string'),
        ({"prompt": [1.5]}, "prompt is [1.5]; it must be a string"),
        ({"prompt": ""}, "prompt has 0 tokens; it must have at least 1"),
        ({"prompt": [400]}, "prompt has 400; token ids of this model are 0 to 399"),
        ({"prompt": [[5], [-1]]}, "prompt has -1; token ids of this model are 0 to 399"),
        ({"prompt": ["a"] * 1025}, "prompt has 1025 entries; it must have at most 1024"),
        ({"prompt": ["a"] * 9, "n": 128}, "n is 128 and prompt has 9 entries; together"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"echo": True, "logprobs": 21}, "logprobs is 21; it must be at most 20"),
        (
            {"prompt": [[5] * 200] * 100, "logprobs": 20, "echo": True},
            "logprobs is 20 and the prompts have 20000 tokens, which makes 420000 logprobs; one",
        ),
        (
            {"prompt": [[5] * 200] * 100, "prompt_logprobs": 20},
            "prompt_logprobs is 20 and the prompts have 20000 tokens",
        ),
        ({"stream_options": {}}, "stream_options is given; it needs stream to be true"),
        ({"best_of": 0}, "best_of is 0; it must be at least 1"),
        ({"best_of": 129}, "best_of is 129; it must be at most 128"),
        ({"best_of": 2, "n": 3}, "best_of is 2; it must be at least n, which is 3"),
        ({"best_of": 3, "stream": True}, "best_of is 3 and n is 1; a stream cannot wait"),
        ({"prompt": ["a"] * 9, "best_of": 128}, "best_of is 128 and prompt has 9 entries"),
        ({"length_penalty": 2}, "length_penalty is 2"),
        ({"early_stopping": "never"}, 'early_stopping is "never"; it needs use_beam_search'),
        ({"use_beam_search": True, "early_stopping": 3}, "early_stopping is 3; it must be true, f"),
        ({"use_beam_search": True, "stop": "x"}, 'stop is "x"; with use_beam_search it is not'),
        ({"use_beam_search": True, "stream": True}, "stream is true; with use_beam_search it is"),
        ({"use_beam_search": True, "temperature": 0.5}, "temperature is 0.5; with use_beam"),
        (
            {"use_beam_search": True, "n": 11, "max_tokens": 9},
            "use_beam_search is true and there are 11 beams (n, or best_of); with 1 tokens",
        ),
        (
            {"use_beam_search": True, "logprobs": 1, "echo": True, "max_tokens": 9},
            "use_beam_search is true; with it a prompt has no logprobs",
        ),
        (
            {"use_beam_search": True, "length_penalty": 11, "max_tokens": 9},
            "length_penalty is 11; it must be at most 10",
        ),
        ({"suffix": "x"}, 'suffix is "x"; it is not supported'),
        ({"logprobs": 21}, "logprobs is 21; it must be at most 20"),
    ],
)
def test_wrong_fields_of_completions(model: Model, fields: dict[str, Any], message: str) -> None:
    status, said, _ = completion_refusal(model, **fields)
    assert status == 400
    assert said.startswith(message)


def test_another_model_is_not_found(model: Model) -> None:
    assert chat_refusal(model, model="gpt-5") == (
        404,
        'model "gpt-5" does not exist; this server has "tiny"',
        "model",
    )


def test_a_prompt_over_the_models_length_names_both_numbers(model: Model) -> None:
    assert completion_refusal(model, prompt=[5] * 300) == (
        400,
        "the prompt has 300 tokens; this model accepts at most 256 for prompt and output together",
        "prompt",
    )


def test_prompt_and_max_tokens_over_the_models_length_name_all_numbers(model: Model) -> None:
    assert completion_refusal(model, prompt=[5] * 200, max_tokens=57) == (
        400,
        "max_tokens is 57 and the prompt has 200 tokens; "
        "this model accepts at most 256 for both together",
        "max_tokens",
    )


def test_megabytes_are_refused_before_they_are_tokenized(model: Model) -> None:
    status, message, field = completion_refusal(model, prompt="x" * 4_000_000)
    assert (status, field) == (400, "prompt")
    assert message.startswith("the prompt has at least ")


def test_a_number_beyond_floats_is_out_of_range(model: Model) -> None:
    content = b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}'
    assert refusal(model, parse_chat, content) == (
        400,
        "temperature is inf; it must be at most 2",
        "temperature",
    )


def test_a_long_wrong_value_is_not_echoed(model: Model) -> None:
    _, message, _ = chat_refusal(model, temperature="x" * 10_000)
    assert len(message) < 100


def test_a_search_is_told_only_of_fields_that_there_are() -> None:
    fields = ChatBody.model_fields.keys() | CompletionBody.model_fields.keys()
    assert fields >= WITH_BEAMS
    assert {"temperature", "stop", "tools", "guided_regex", "stream"} <= fields - WITH_BEAMS
