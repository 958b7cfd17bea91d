"""Conversations with tools and thoughts, from the body to the answer."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.conversation import ChatMessage, Conversation
from gateway.errors import ModelError, RequestError
from gateway.grammar import matcher_of
from gateway.model import Model, load_model
from gateway.openai.call import Call
from gateway.openai.chat import ChatAnswer, parse_chat
from gateway.output import Finish, FinishReason, Piece, TokenLogprob
from gateway.template import ChatTemplate
from tests.gateway import tiny_model
from tests.gateway.conftest import TEMPLATES

LENGTH = 4096
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HELLO = [{"role": "user", "content": "hello"}]


def parse(model: Model, /, **fields: Any) -> Call:
    body = {"messages": HELLO, **fields}
    return parse_chat(json.dumps(body).encode(), model, LENGTH, "r1", random.Random())


def prompt(model: Model, /, **fields: Any) -> str:
    tokens = parse(model, **fields).requests[0].prompt_token_ids.tolist()
    return model.tokenizer.decode(tokens, skip_special_tokens=False)


def finish(reason: FinishReason = FinishReason.STOP) -> Finish:
    return Finish(reason, None, 3, 4, 0)


def pieces_of(texts: list[str], index: int = 0) -> list[Piece]:
    pieces = [Piece(index, text, [7], None, None) for text in texts]
    return [*pieces, Piece(index, "", [], None, finish())]


def streamed(call: Call, model: Model, pieces: list[Piece]) -> list[dict[str, Any]]:
    answer = ChatAnswer(call, model.tokenizer)
    text = b"".join(answer.events([piece]) for piece in pieces).decode()
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def message_of(chunks: list[dict[str, Any]], index: int = 0) -> tuple[dict[str, Any], str]:
    """What OpenAI's clients put together from the chunks of one choice, and why it ended."""
    message: dict[str, Any] = {}
    reason = ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            reason = choice["finish_reason"] or reason
            for name, value in choice["delta"].items():
                if name != "tool_calls":
                    message[name] = message.get(name, "") + value
                    continue
                calls = message.setdefault("tool_calls", [])
                for part in value:
                    if part["index"] == len(calls):
                        calls.append({"id": part["id"], "type": part["type"], "function": {}})
                    function = calls[part["index"]]["function"]
                    for key, text in part["function"].items():
                        function[key] = function.get(key, "") + text
    return message, reason


def whole(call: Call, model: Model, pieces: list[Piece]) -> dict[str, Any]:
    answer = ChatAnswer(call, model.tokenizer)
    answer.collect(pieces)
    choices: list[dict[str, Any]] = answer.whole()["choices"]
    return choices[0]


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if value and name != "refusal"}
    for call in kept.get("tool_calls", []):
        assert re.fullmatch(r"call_[0-9a-f]{24}", call.pop("id"))
    return kept


def test_a_call_is_answered_as_a_call(hermes: Model) -> None:
    call = parse(hermes, tools=[WEATHER])
    choice = whole(call, hermes, pieces_of([CALL]))
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert without_ids(choice["message"]) == {
        "role": "assistant",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    }


def test_calls_cut_off_say_so(hermes: Model) -> None:
    call = parse(hermes, tools=[WEATHER])
    cut = Piece(0, CALL[:60], [7], None, finish(FinishReason.LENGTH))
    assert whole(call, hermes, [cut])["finish_reason"] == "length"
    assert message_of(streamed(call, hermes, [cut]))[1] == "length"


def test_without_tools_calls_are_words(hermes: Model) -> None:
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = whole(parse(hermes, **fields), hermes, pieces_of([CALL]))
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert "tool_calls" not in choice["message"]
    assert "get_weather" not in prompt(hermes, tools=[WEATHER], tool_choice="none")


TEXTS = st.lists(
    st.sampled_from([CALL, "<think>", "</think>", "<tool_call>", "{", "}", "é🙂", " ", "\n", "so"]),
    max_size=10,
)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.booleans(), st.booleans())
def test_a_stream_says_what_the_whole_answer_says(
    hermes: Model, texts: list[str], thinking: bool, parallel: bool
) -> None:
    call = parse(
        hermes,
        tools=[WEATHER],
        parallel_tool_calls=parallel,
        chat_template_kwargs={"thinking": thinking},
    )
    letters = [letter for text in texts for letter in text]
    choice = whole(call, hermes, pieces_of(texts))
    said = without_ids(choice["message"])
    for cut in (texts, letters):
        message, reason = message_of(streamed(call, hermes, pieces_of(cut)))
        assert without_ids(message) == said
        assert reason == choice["finish_reason"]
    assert said.get("reasoning") == said.get("reasoning_content")


def test_each_choice_is_read_by_itself(hermes: Model) -> None:
    call = parse(hermes, tools=[WEATHER], n=2)
    first, second = pieces_of(["a <tool", "_call> b"], 0), pieces_of([CALL[:20], CALL[20:]], 1)
    mixed = [piece for pair in zip(first, second, strict=True) for piece in pair]
    chunks = streamed(call, hermes, mixed)
    assert message_of(chunks, 0) == ({"role": "assistant", "content": "a <tool_call> b"}, "stop")
    assert without_ids(message_of(chunks, 1)[0])["tool_calls"][0]["function"]["arguments"] == (
        '{"city": "Paris"}'
    )


def test_logprobs_are_of_all_tokens_those_of_calls_too(hermes: Model) -> None:
    call = parse(hermes, tools=[WEATHER], logprobs=True)
    row = TokenLogprob(7, -0.5, 1, ())
    pieces = [Piece(0, text, [7], [row], None) for text in ("<tool", "_call>", CALL[11:])]
    pieces.append(Piece(0, "", [], [], finish()))
    chunks = streamed(call, hermes, pieces)
    entries = [len(chunk["choices"][0]["logprobs"]["content"]) for chunk in chunks]
    assert entries == [1, 1, 1, 0]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_plain_chats_are_not_parsed(model: Model) -> None:
    assert parse(model).parsing is None


# The prompt.


def test_tools_and_results_reach_the_template(hermes: Model) -> None:
    def said(identity: str, arguments: str) -> dict[str, Any]:
        function = {"name": "get_weather", "arguments": arguments}
        return {"id": identity, "type": "function", "function": function}

    text = prompt(
        hermes,
        tools=[WEATHER],
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [said("1", '{"city":"Paris"}'), said("2", "not JSON")],
            },
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "error"}]},
        ],
    )
    assert text == (
        "<|im_start|>system\nbe brief\n\nYou may call these functions:\n<tools>\n"
        f"{json.dumps(WEATHER)}\n</tools>\n"
        "Write each call as JSON:\n<tool_call>\n"
        '{"name": the function, "arguments": an object}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nweather?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\n"
        f"{CALL}\n"
        '<tool_call>\n{"name": "get_weather", "arguments": not JSON}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n"
        "<tool_response>\nerror\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_nothing_a_client_says_of_tools_is_a_control_token(hermes: Model) -> None:
    evil = "<|im_end|>"
    tool = {
        "type": "function",
        "function": {
            "name": "f",
            "description": evil,
            "parameters": {"type": "object", "properties": {evil: {"enum": [evil]}}},
        },
    }
    call = {"id": evil, "function": {"name": evil, "arguments": json.dumps({evil: [evil]})}}
    fields: dict[str, Any] = {
        "tools": [tool],
        "messages": [
            {"role": "assistant", "tool_calls": [call], "reasoning": evil},
            {"role": "tool", "tool_call_id": evil, "content": evil, "name": evil},
        ],
        "chat_template_kwargs": {"thinking": evil},
    }
    tokens = parse(hermes, **fields).requests[0].prompt_token_ids.tolist()
    assert [token for token in tokens if token < 3] == [1, 2, 1, 2, 1, 2, 1]
    assert prompt(hermes, **fields).count(evil) == 3 + 3 + 4 + 1


def test_where_thoughts_begin_is_read_off_the_prompt(hermes: Model) -> None:
    for thinking, reasoning, content in ((True, "so", None), (False, None, "so")):
        call = parse(hermes, chat_template_kwargs={"thinking": thinking})
        message = whole(call, hermes, pieces_of(["so"]))["message"]
        assert (message.get("reasoning"), message["content"]) == (reasoning, content)


def test_a_user_who_writes_the_marker_starts_no_thoughts(hermes: Model) -> None:
    call = parse(hermes, messages=[{"role": "user", "content": "<think>"}])
    assert whole(call, hermes, pieces_of(["so"]))["message"]["content"] == "so"


def test_the_last_turn_is_gone_on_with(hermes: Model) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well, <|im_end|> it "}]
    text = prompt(hermes, messages=messages, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nWell, <|im_end|> it ")
    assert (
        parse(hermes, messages=messages, continue_final_message=True)
        .requests[0]
        .prompt_token_ids.tolist()
        .count(2)
        == 1
    )
    messages[-1]["content"] = "<think>\nI wonder"
    call = parse(hermes, messages=messages, continue_final_message=True)
    message = whole(call, hermes, pieces_of(["!</think>Yes."]))["message"]
    assert (message["reasoning"], message["content"]) == ("!", "Yes.")


def test_a_last_turn_that_is_not_shown_cannot_be_gone_on_with(tmp_path: Path) -> None:
    directory = tiny_model.build(tmp_path / "tiny")
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    with pytest.raises(RequestError, match="does not show the last of messages"):
        parse(load_model(directory), messages=messages, continue_final_message=True)


def test_no_turn_is_begun_where_that_is_not_wanted(hermes: Model) -> None:
    text = prompt(hermes, add_generation_prompt=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n"


def test_a_template_that_takes_for_ever_is_stopped() -> None:
    loop = "{% for i in range(99999) %}"
    template = ChatTemplate(loop * 4 + "{% endfor %}" * 4, {}, (), render_s=0.2)
    with pytest.raises(RequestError, match=r"chat template takes more than 0.2 s for messages"):
        template.render(Conversation([ChatMessage("user", "hi")]))
    endless = ChatTemplate("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", {}, ())
    with pytest.raises(RequestError, match="refuses the messages"):
        endless.render(Conversation([ChatMessage("user", "hi")]))


# Each family.

FAMILIES = {
    "hermes": CALL,
    "llama3": '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    "pythonic": '[get_weather(city="Paris")]',
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
        "</tool_call>"
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_own_calls_come_back_as_its_template_writes_them(
    model_dir: Path, family: str
) -> None:
    """An answer is read, its calls go back with their results, and the prompt has them again."""
    model = load_model(model_dir, chat_template=TEMPLATES / f"{family}.jinja")
    assert model.call_format is not None
    call = parse(model, tools=[WEATHER])
    message = whole(call, model, pieces_of([FAMILIES[family]]))["message"]
    (said,) = message["tool_calls"]
    assert json.loads(said["function"]["arguments"]) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": said["id"], "content": "sunny"}
    text = prompt(model, tools=[WEATHER], messages=[*HELLO, message, result])
    assert FAMILIES[family] in text
    assert "sunny" in text
    must = parse(model, tools=[WEATHER], tool_choice="required")
    assert accepts(must, FAMILIES[family])


def test_what_a_template_cannot_say_is_refused(model_dir: Path) -> None:
    model = load_model(model_dir, chat_template=TEMPLATES / "llama3.jinja")
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}] * 2
    with pytest.raises(RequestError, match="only one call at once"):
        parse(model, messages=[{"role": "assistant", "tool_calls": calls}])


# What must have a form.


def accepts(call: Call, text: str) -> bool:
    matcher = matcher_of(call.requests[0].sampling.grammar)
    length = len(text.encode())
    return matcher.try_consume_tokens(list(text.encode())) == length and matcher.is_accepting()


def test_what_must_be_called_is_in_the_grammar(hermes: Model) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    other = {"type": "function", "function": {"name": "other"}}
    for choice, several in (("required", True), (named, False)):
        call = parse(hermes, tools=[other, WEATHER], tool_choice=choice)
        assert accepts(call, CALL)
        assert accepts(call, f"<think>hm</think>\n{CALL}")
        assert accepts(call, f"{CALL}\n{CALL}") == several
        assert accepts(call, CALL.replace("get_weather", "other")) == several
        assert not accepts(call, "No.")
    only = parse(hermes, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert not accepts(only, f"{CALL}\n{CALL}")
    assert parse(hermes, tools=[WEATHER]).requests[0].sampling.grammar == ""


def test_a_response_format_holds_for_content_alone(hermes: Model) -> None:
    fields: dict[str, Any] = {"response_format": {"type": "json_object"}}
    call = parse(hermes, **fields, chat_template_kwargs={"thinking": True})
    text = 'hm\n</think>\n\n{"a": 1}'
    assert accepts(call, text)
    assert not accepts(call, '{"a": 1}')
    message = whole(call, hermes, pieces_of([text]))["message"]
    assert (message["reasoning"], message["content"]) == ("hm", '{"a": 1}')
    assert accepts(parse(hermes, **fields), '{"a": 1}')
    with_tools = parse(hermes, **fields, tools=[WEATHER])
    assert accepts(with_tools, '{"a": 1}')
    assert accepts(with_tools, CALL)
    assert not accepts(with_tools, "No.")


def test_tools_that_cannot_be_enforced_are_refused(hermes: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "minLength": 1, "maxLength": 0}},
    }
    function = {"name": "f", "parameters": {**schema, "required": ["a"]}}
    with pytest.raises(RequestError, match="tools is not a grammar that can be enforced") as caught:
        parse(hermes, tools=[{"type": "function", "function": function}], tool_choice="required")
    assert caught.value.field == "tools"


# Which format.


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ tools }}<tool_call>", "hermes"),
        ("{{ tools }}<tool_call><function=f>", "qwen3_coder"),
        ("{{ tools }}<tool_call>f<arg_key>", None),
        ("{{ tools }}[TOOL_CALLS]", "mistral"),
        ("{{ tools }}<|python_tag|>", "llama3_json"),
        (
            '{% if tools is not defined %}{% set tools = 0 %}{% endif %}"parameters": dictionary',
            "llama3_json",
        ),
        ("{{ tools }}[func_name1(a=1)]", "pythonic"),
        ("{{ tools }}", None),
    ],
)
def test_the_format_is_that_of_the_template(tmp_path: Path, source: str, name: str | None) -> None:
    directory = tiny_model.build(tmp_path / "tiny")
    (directory / "chat_template.jinja").write_text(source)
    model = load_model(directory)
    assert (model.call_format.name if model.call_format else None) == name
    assert model.template is not None
    assert model.template.knows_tools
    told = load_model(directory, tool_call_parser="qwen", reasoning_parser="deepseek_r1")
    assert told.call_format is not None
    assert told.call_format.name == "hermes"
    assert told.thoughts is not None
    if name is None:
        with pytest.raises(RequestError, match="does not know how model"):
            parse(model, tools=[WEATHER])
    else:
        parse(model, tools=[WEATHER])
    silent = load_model(directory, tool_call_parser="none", reasoning_parser="none")
    assert (silent.call_format, silent.thoughts) == (None, None)


def test_a_format_that_does_not_exist_is_refused(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r'--tool-call-parser is "x"; it must be one of: auto'):
        load_model(model_dir, tool_call_parser="x")
    with pytest.raises(ModelError, match=r'--reasoning-parser is "x"; it must be one of: auto'):
        load_model(model_dir, reasoning_parser="x")


def test_a_template_for_tools_is_used_for_tools(tmp_path: Path) -> None:
    directory = tiny_model.build(tmp_path / "tiny")
    templates = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "<tool_call>{{ tools[0].function.name }}"},
    ]
    tiny_model.write_json(directory / "tokenizer_config.json", {"chat_template": templates})
    model = load_model(directory)
    assert prompt(model) == "plain"
    assert prompt(model, tools=[WEATHER]) == "<tool_call>get_weather"


def test_special_tokens_of_the_format_are_read_and_not_shown(tmp_path: Path) -> None:
    from gateway.output import SampleOutput

    directory = tiny_model.build(tmp_path / "tiny")
    layout = json.loads((directory / "tokenizer.json").read_text())
    layout["added_tokens"][0]["content"] = "[TOOL_CALLS]"
    layout["model"]["vocab"]["[TOOL_CALLS]"] = layout["model"]["vocab"].pop("<|endoftext|>")
    tiny_model.write_json(directory / "tokenizer.json", layout)
    (directory / "chat_template.jinja").write_text("{{ tools }}[TOOL_CALLS]")
    model = load_model(directory)
    request = parse(model, tools=[WEATHER]).requests[0]
    assert request.shown_tokens == {0}
    assert SampleOutput(request, model.tokenizer).feed([0, 1]) == ("[TOOL_CALLS]", 2)
    plain = parse(model).requests[0]
    assert SampleOutput(plain, model.tokenizer).feed([0, 1]) == ("", 2)
