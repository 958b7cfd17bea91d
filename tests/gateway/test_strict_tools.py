"""Functions that are strict: the arguments of every call of theirs are what the schema says."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.anthropic.messages import parse_messages
from gateway.errors import RequestError
from gateway.grammar import Reader, matcher_of, spelled
from gateway.model import Model, load_model
from gateway.openai.call import Call
from gateway.openai.chat import parse_chat
from gateway.openai.responses import StoredResponse, parse_response
from gateway.output import SampleOutput
from tests.gateway import tiny_model
from tests.gateway.conftest import TEMPLATES
from tests.gateway.parsing.whole import read_whole
from worker.grammars import GrammarError, Grammars

LENGTH = 1 << 20
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "hello"}]
RIGHT = '<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>'
WRONG = RIGHT.replace("Paris", "Bonn")
OTHER = '<tool_call>\n{"name": "g", "arguments": {"city": "Bonn"}}\n</tool_call>'


def function(name: str, schema: dict[str, Any] = SCHEMA, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **fields}}


STRICT = function("f", strict=True)


def chat(model: Model, /, **fields: Any) -> Call:
    body = {"messages": QUESTION, "tools": [STRICT], **fields}
    return parse_chat(json.dumps(body).encode(), model, LENGTH, "r1", random.Random())


def none_kept(identity: str) -> StoredResponse:
    raise KeyError(identity)


def response(model: Model, /, **fields: Any) -> Call:
    body = {"input": "hello", **fields}
    return parse_response(
        json.dumps(body).encode(), model, LENGTH, "r1", random.Random(), none_kept
    )


def messages(model: Model, /, **fields: Any) -> Call:
    body = {"messages": QUESTION, "max_tokens": 9, "model": model.name, **fields}
    return parse_messages(json.dumps(body).encode(), model, LENGTH, "r1", random.Random())


def lets_through(call: Call, text: str) -> bool:
    matcher = matcher_of(call.requests[0].sampling.grammar)
    length = len(text.encode())
    return matcher.try_consume_tokens(list(text.encode())) == length and matcher.is_accepting()


@pytest.fixture(scope="module")
def models(model_dir: Path) -> dict[str, Model]:
    return {
        path.stem: load_model(model_dir, chat_template=path) for path in TEMPLATES.glob("*.jinja")
    }


def test_words_and_right_calls_come_as_the_model_likes(hermes: Model) -> None:
    call = chat(hermes, tools=[STRICT, function("g")])
    for text in (
        "",
        "No.",
        "Let me see.\n" + RIGHT,
        f"<think>{WRONG}</think>{RIGHT} and\n{OTHER}",
        f"{RIGHT}\n{RIGHT}",
        "a <tool_cal of 1 < 2",
        OTHER,
    ):
        assert lets_through(call, text), text
    for text in (WRONG, f"So: {WRONG}", f"{RIGHT}\n{WRONG}", "<tool_call>", f"<think>{WRONG}"):
        assert not lets_through(call, text), text
    one = chat(hermes, parallel_tool_calls=False)
    assert lets_through(one, f"{RIGHT} Done.")
    assert not lets_through(one, f"{RIGHT}\n{RIGHT}")


def test_where_nothing_is_strict_nothing_is_bound(hermes: Model) -> None:
    assert (
        chat(hermes, tools=[function("g"), function("h", strict=False)])
        .requests[0]
        .sampling.grammar
        == ""
    )
    assert chat(hermes, tool_choice="none").requests[0].sampling.grammar == ""


@pytest.mark.parametrize(
    ("family", "right"),
    [
        ("llama3", '{"name": "f", "parameters": {"city": "Paris"}}'),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"city": "Paris"}}]'),
        ("pythonic", '[f(city="Paris")]'),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
            "</tool_call>",
        ),
    ],
)
def test_each_family_keeps_to_its_own_way(
    models: dict[str, Model], family: str, right: str
) -> None:
    call = chat(models[family])
    assert lets_through(call, right)
    assert lets_through(call, "Words, and { [ more }.")
    assert not lets_through(call, right.replace("Paris", "Bonn"))
    assert call.parsing is not None
    (said,) = read_whole(call.parsing.make_parser(), right).calls
    assert json.loads(said.arguments) == {"city": "Paris"}


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama3", '{"name": "f", "parameters": {"city": "Bonn"}}'),
        ("pythonic", '[f(city="Bonn")]'),
    ],
)
def test_where_calls_have_no_word_of_their_own_only_the_first_words_are_calls(
    models: dict[str, Model], family: str, wrong: str
) -> None:
    call = chat(models[family])
    assert call.parsing is not None
    text = f"I could write {wrong}"
    assert lets_through(call, text)
    said = read_whole(call.parsing.make_parser(), text)
    assert (said.content, said.calls) == (text, [])


def test_an_object_that_is_no_call_may_be_written(models: dict[str, Model]) -> None:
    call = chat(models["llama3"])
    assert call.parsing is not None
    for text in ('{"name": "Alice"}', '{"type": "function", "name": "f", "parameters": {}}'):
        assert lets_through(call, text)
        assert read_whole(call.parsing.make_parser(), text).content == text


# What cannot be.

ANY_OF = {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
BACK = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a)\\1"}}}
LIMITED = {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}}


@pytest.mark.parametrize(
    ("family", "schema", "reason"),
    [
        ("hermes", BACK, "not a grammar that can be enforced"),
        ("pythonic", ANY_OF, 'has "anyOf" beside properties'),
        ("qwen3_coder", ANY_OF, 'has "anyOf" beside properties'),
        ("qwen3_coder", LIMITED, 'has a parameter with "format", which is text in a tag'),
        ("pythonic", {"type": "object", "required": ["a"]}, 'requires "a", which is not among'),
    ],
)
def test_a_strict_function_that_cannot_be_enforced_is_refused(
    models: dict[str, Model], family: str, schema: dict[str, Any], reason: str
) -> None:
    model = models[family]
    bad = function("bad", schema, strict=True)
    with pytest.raises(RequestError) as caught:
        chat(model, tools=[STRICT, bad])
    assert caught.value.field == "tools[1].function.strict"
    assert "tools[1].function.strict is true; " in str(caught.value)
    assert reason in str(caught.value)
    said = {"type": "function", "name": "bad", "parameters": schema}
    with pytest.raises(RequestError) as caught:
        response(model, tools=[said | {"strict": True}])
    assert caught.value.field == "tools[0].strict"
    assert response(model, tools=[said]).requests[0].sampling.grammar == ""
    with pytest.raises(RequestError) as caught:
        messages(model, tools=[{"name": "bad", "input_schema": schema, "strict": True}])
    assert caught.value.field == "tools[0].strict"


def test_responses_hold_functions_to_their_schemas_unless_told_otherwise(hermes: Model) -> None:
    said = {"type": "function", "name": "f", "parameters": SCHEMA}
    call = response(hermes, tools=[said])
    assert lets_through(call, f"So: {RIGHT}")
    assert not lets_through(call, f"So: {WRONG}")
    loose = response(hermes, tools=[said | {"strict": False}])
    assert loose.requests[0].sampling.grammar == ""


def test_responses_hold_no_more_functions_than_a_grammar_may_cost(hermes: Model) -> None:
    cities = {"enum": [f"city {number}" for number in range(900)]}
    schema = {"type": "object", "properties": {"city": cities}, "required": ["city"]}
    large = [
        {"type": "function", "name": f"g{number}", "parameters": schema} for number in range(8)
    ]
    assert response(hermes, tools=large[:1]).requests[0].sampling.grammar != ""
    assert response(hermes, tools=large).requests[0].sampling.grammar == ""
    strict = {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}
    call = response(hermes, tools=[*large, strict])
    assert lets_through(call, RIGHT)
    assert not lets_through(call, WRONG)
    assert lets_through(call, RIGHT.replace('"f"', '"g0"'))
    with pytest.raises(RequestError, match=r"tools has \d+ bytes; it must have at most 65536"):
        response(hermes, tools=[tool | {"strict": True} for tool in large])


def test_messages_hold_strict_tools_to_their_schemas(hermes: Model) -> None:
    said = {"name": "f", "input_schema": SCHEMA}
    assert messages(hermes, tools=[said]).requests[0].sampling.grammar == ""
    call = messages(hermes, tools=[said | {"strict": True}])
    assert lets_through(call, f"So: {RIGHT}")
    assert not lets_through(call, f"So: {WRONG}")


def test_content_that_may_read_like_a_call_is_refused_beside_a_strict_function(
    models: dict[str, Model],
) -> None:
    form = {"response_format": {"type": "json_object"}}
    with pytest.raises(RequestError, match=r"tools\[0\].function.strict is true; what response_f"):
        chat(models["llama3"], **form)
    with pytest.raises(RequestError, match=r"what guided_regex lets through may read like a call"):
        chat(models["hermes"], guided_regex=".*")
    chat(models["llama3"], **form, tools=[function("f")])
    call = chat(models["qwen3_coder"], **form)
    text = json.dumps({"a": "<tool_call><function=f></function></tool_call>"})
    assert lets_through(call, text)
    assert call.parsing is not None
    assert read_whole(call.parsing.make_parser(), text).content == text


def test_a_stop_string_ends_words_but_no_call(hermes: Model) -> None:
    call = chat(hermes, stop=["Paris"])
    language = Reader(call.requests[0].sampling.grammar)
    assert language.accepts("I like ")
    assert not language.accepts(RIGHT.partition("Paris")[0])
    assert language.accepts(f"{RIGHT} and ")


@pytest.fixture(scope="module")
def special_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary has special tokens for its calls."""
    directory = tiny_model.build(tmp_path_factory.mktemp("special") / "tiny")
    layout = json.loads((directory / "tokenizer.json").read_text())
    first = len(layout["model"]["vocab"])
    for token, word in enumerate(("<tool_call>", "</tool_call>"), start=first):
        layout["added_tokens"].append({**layout["added_tokens"][0], "id": token, "content": word})
    tiny_model.write_json(directory / "tokenizer.json", layout)
    config = json.loads((directory / "config.json").read_text())
    tiny_model.write_json(directory / "config.json", config | {"vocab_size": first + 2})
    return directory


@pytest.fixture
def special(special_dir: Path) -> Model:
    return load_model(special_dir, chat_template=TEMPLATES / "hermes.jinja")


def test_a_stop_string_is_looked_for_where_a_call_begins_with_a_special_token(
    special: Model,
) -> None:
    (request,) = chat(special, stop=["Paris"]).requests
    begin, end = map(special.tokenizer.special_token, ("<tool_call>", "</tool_call>"))
    assert f"<[{begin}]>" in request.sampling.grammar
    assert f"<[{end}]>" in request.sampling.grammar

    def shown(text: str) -> str:
        output = SampleOutput(request, special.tokenizer)
        said, _ = output.feed(special.tokenizer.encode(text, add_special_tokens=False))
        return said

    assert shown("I like Paris best") == "I like "
    assert shown(f"{RIGHT} or Paris?") == f"{RIGHT} or "


def test_special_tokens_and_the_same_spelled_out_begin_calls(
    special: Model, special_dir: Path
) -> None:
    grammar = chat(special).requests[0].sampling.grammar
    grammars = Grammars(special_dir / "tokenizer.json", special.tokenizer.vocab_size)

    def may_end(tokens: list[int]) -> bool:
        try:
            return grammars.begin(grammar, tokens).result().may_end
        except GrammarError:
            return False

    def both_ways(text: str) -> list[bool]:
        pieces = re.split("(?<=<)(?=tool_call)", text)  # in two pieces it is no special token
        encoder = special.tokenizer
        return [
            may_end(encoder.encode(text, add_special_tokens=False)),
            may_end(encoder.encode_pieces(pieces)),
        ]

    for text in ("", "Well.", RIGHT, f"So: {RIGHT}\n{RIGHT} Done."):
        assert both_ways(text) == [True, True], text
    for text in (WRONG, f"So: {WRONG}", f"{RIGHT}\n{WRONG}", f"<think>hm</think>{WRONG}"):
        assert both_ways(text) == [False, False], text


@pytest.mark.parametrize(("begin", "end"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_a_language_of_tokens_is_read_as_text(begin: str, end: str) -> None:
    source = "start: thoughts <[^0]>*\nthoughts: <[^1]>{0,9} <[1]>\n"
    language = Reader(spelled(source, [begin.encode(), end.encode()]))
    assert not language.accepts("hm")
    assert language.accepts(f"so many words {end} and {begin} more")
    assert spelled("start: <[0]> /a/", [b"x/"]) == 'start: "x/" /a/'


# What comes back.


def chat_result(model: Model, identity: str) -> None:
    called = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "assistant", "tool_calls": [called]}
    result = {"role": "tool", "tool_call_id": identity, "content": "1"}
    chat(model, messages=[*QUESTION, asked, result])


def response_result(model: Model, identity: str) -> None:
    item = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": identity, "output": "1"}
    response(model, input=[item, output])


def messages_result(model: Model, identity: str) -> None:
    used = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": identity, "content": "1"}
    turns = [{"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    messages(model, messages=[*QUESTION, *turns])


@pytest.mark.parametrize(
    ("send", "field"),
    [
        (chat_result, "messages[2].tool_call_id"),
        (response_result, "input[1].call_id"),
        (messages_result, "messages[2].content[0].tool_use_id"),
    ],
)
def test_a_result_of_no_call_is_refused(
    hermes: Model, send: Callable[[Model, str], None], field: str
) -> None:
    send(hermes, "a")
    with pytest.raises(RequestError) as caught:
        send(hermes, "b")
    assert caught.value.field == field
    assert str(caught.value) == f'{field} is "b"; no call before it has that id'


def test_a_result_before_its_call_is_refused(hermes: Model) -> None:
    called = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "assistant", "tool_calls": [called]},
    ]
    with pytest.raises(RequestError, match=r"messages\[0\].tool_call_id"):
        chat(hermes, messages=turns)
