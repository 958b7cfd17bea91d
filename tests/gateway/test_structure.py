"""What an answer must look like: every way of saying it, and what cannot be said."""

import json
import random
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.grammar import GrammarKind, GrammarSpec, compiled, matcher_of
from gateway.model import Model, load_model
from gateway.openai.completions import parse_completion
from gateway.request import GenerateRequest
from gateway.wire import parse_generate
from protos.limits import MAX_BAD_WORD_TOKENS
from protos.quire.v1 import inference_pb2
from tests.gateway import tiny_model
from tests.gateway.tiny_model import EOS, MAX_MODEL_LEN

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def completion(model: Model, /, **fields: Any) -> GenerateRequest:
    content = json.dumps({"prompt": "hi", **fields}).encode()
    return parse_completion(content, model, MAX_MODEL_LEN, "r1", random.Random()).requests[0]


def refusal(model: Model, /, **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(RequestError) as refused:
        completion(model, **fields)
    return refused.value.field, refused.value.message


def is_in(text: str, grammar: str) -> bool:
    matcher = matcher_of(grammar)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": PERSON, "strict": True},
            }
        },
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "p", "schema": PERSON},
            }
        },
        {"structured_outputs": {"json": PERSON}},
        {"structured_outputs": {"json": json.dumps(PERSON), "regex": None}},
        {"guided_json": PERSON},
        {"guided_json": json.dumps(PERSON)},
    ],
)
def test_every_way_to_give_a_schema(model: Model, fields: dict[str, Any]) -> None:
    grammar = completion(model, **fields).sampling.grammar
    assert is_in('{"name": "Ada", "age": 36}', grammar)
    assert is_in('{\n  "name": "東京 \\n",\n  "age": -1\n}', grammar)
    for wrong in ('{"name": "Ada"}', '{"age": 36, "name": "Ada"}', '{"name": 1, "age": 1}', "hi"):
        assert not is_in(wrong, grammar)


@pytest.mark.parametrize(
    ("fields", "inside", "outside"),
    [
        ({"response_format": {"type": "json_object"}}, '{"a": [1, {}]}', "[1]"),
        ({"structured_outputs": {"json_object": True}}, "{}", "1"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "{}", "1"),
        ({"guided_regex": r"\d{3}-[a-z]+"}, "123-abc", "123-"),
        ({"structured_outputs": {"regex": "^a|b$"}}, "b", "c"),
        ({"guided_choice": ["yes", 'a "quoted"\\ one\n', "東京"]}, 'a "quoted"\\ one\n', "ye"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "yesno"),
        ({"guided_grammar": 'start: "(" start ")" | "x"'}, "((x))", "((x)"),
        ({"structured_outputs": {"grammar": "start: /[ab]+/"}}, "abba", "abc"),
    ],
)
def test_every_kind_of_language(
    model: Model, fields: dict[str, Any], inside: str, outside: str
) -> None:
    grammar = completion(model, **fields).sampling.grammar
    assert is_in(inside, grammar)
    assert not is_in(outside, grammar)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "structured_outputs": {}, "guided_json": None},
        {"guided_regex": "", "guided_choice": None, "guided_grammar": None},
        {"structured_outputs": {"json": None, "json_object": False, "whitespace_pattern": None}},
    ],
)
def test_nothing_asked_is_nothing_held_to(model: Model, fields: dict[str, Any]) -> None:
    assert completion(model, **fields).sampling.grammar == ""


def schema_format(**said: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": said}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (
            {"guided_choice": []},
            "guided_choice",
            "guided_choice has 0 entries; it must have 1 to 1000",
        ),
        (
            {"structured_outputs": {"choice": []}},
            "structured_outputs.choice",
            "structured_outputs.choice has 0 entries; it must have 1 to 1000",
        ),
        ({"response_format": "json"}, "response_format", 'is "json"; it must be an object'),
        ({"response_format": {}}, "response_format.type", "is missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", 'is "xml"; it must be one'),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "is missing",
        ),
        (schema_format(), "response_format.json_schema.name", "is missing"),
        (schema_format(name="a b"), "response_format.json_schema.name", 'is "a b"; it must be'),
        (
            schema_format(name="a", schema=[]),
            "response_format.json_schema.schema",
            "is []; it must be an object",
        ),
        (
            schema_format(name="a", strict="yes"),
            "response_format.json_schema.strict",
            'is "yes"; it must be true or false',
        ),
        (
            schema_format(name="a", schema={"type": "array", "uniqueItems": True}),
            "response_format.json_schema.schema",
            'Unimplemented keys: ["uniqueItems"]',
        ),
        ({"guided_json": {"type": "frob"}}, "guided_json", "Invalid type: frob"),
        ({"guided_json": "{"}, "guided_json", "is a string, but not JSON"),
        ({"guided_json": [1]}, "guided_json", "is [1]; it must be an object"),
        ({"guided_json": {"$ref": "#"}}, "guided_json", "no answer is in it"),
        ({"guided_json": {"$ref": "http://localhost/x"}}, "guided_json", "is not present"),
        (
            {"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}},
            "guided_json",
            "minimum (2) is greater than maximum (1)",
        ),
        ({"guided_json": nested(40)}, "guided_json", "it must be at most 32 deep"),
        ({"guided_json": {"enum": list(range(3000))}}, "guided_json", "the 2000 that it may have"),
        (
            {"guided_json": {"enum": ["x" * 70_000]}},
            "guided_json",
            "bytes; it must have at most 65536",
        ),
        ({"guided_json": {"const": "\ud800"}}, "guided_json", "has a lone surrogate"),
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
        ({"guided_regex": 7}, "guided_regex", "is 7; it must be a string"),
        ({"guided_regex": "a" * 65_537}, "guided_regex", "has 65537 bytes; it must have at most"),
        ({"guided_choice": "yes"}, "guided_choice", 'is "yes"; it must be an array'),
        ({"guided_choice": ["a"] * 1001}, "guided_choice", "has 1001 entries; it must have 1 to"),
        ({"guided_grammar": "start: b"}, "guided_grammar", 'unknown name: "b"'),
        ({"structured_outputs": 1}, "structured_outputs", "is 1; it must be an object"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", "is 1; it must be a"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag",
            "it is not supported",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.choice",
            "structured_outputs.regex are both given; there may be at most one",
        ),
        (
            {"guided_json": {}, "guided_regex": "a"},
            "guided_regex",
            "guided_regex and guided_json are both given",
        ),
        (
            {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
            "guided_choice",
            "guided_choice and response_format are both given",
        ),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "guided_regex describes ends"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "has 0 tokens; it must have 1 to 400"),
        ({"allowed_token_ids": [400]}, "allowed_token_ids", "has 400; token ids of this model"),
        ({"allowed_token_ids": ["a"]}, "allowed_token_ids[0]", "must be an integer"),
        ({"bad_words": [" "]}, "bad_words", "has a word of 0 characters; each must have 1 to 256"),
        ({"bad_words": ["x"] * 257}, "bad_words", "has 257 words; it must have at most 256"),
        ({"bad_words": ["\ud800"]}, "bad_words", "has a lone surrogate"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name(
    model: Model, fields: dict[str, Any], field: str, message: str
) -> None:
    named, told = refusal(model, **fields)
    assert named == field
    assert told.startswith(field)
    assert message in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "pattern",
    [r"^(([a-z])+.)+[A-Z]([a-z])+$", "(a+)+$", "(a|a)*b" * 50, "((((a?){30}){30}){30}){30}"],
)
def test_a_regex_that_backtracks_elsewhere_is_read_here(model: Model, pattern: str) -> None:
    assert completion(model, guided_regex=pattern).sampling.grammar


def test_a_schema_cannot_loosen_its_own_reading(model: Model) -> None:
    schema = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    assert "uniqueItems" in refusal(model, guided_json=schema)[1]


def test_a_model_without_an_end_needs_a_stop_token(tmp_path: Path) -> None:
    endless = replace(load_model(tiny_model.build(tmp_path / "tiny")), eos_token_ids=frozenset())
    assert refusal(endless, guided_regex="a")[0] == "guided_regex"
    assert completion(endless, guided_regex="a", stop_token_ids=[EOS]).sampling.grammar


def test_allowed_tokens_and_bad_words_arrive_as_tokens(model: Model) -> None:
    sampling = completion(model, allowed_token_ids=[9, 7, 9], bad_words=["the", " fox "]).sampling
    assert sampling.allowed_token_ids == (7, 9)
    texts = {model.tokenizer.decode(word, skip_special_tokens=False) for word in sampling.bad_words}
    assert texts == {"the", " the", "fox", " fox"}


def test_bad_words_have_so_many_tokens_in_all_spellings(model: Model) -> None:
    words = [f"{number:03d}" + "-7" * 40 for number in range(120)]
    each = [sum(map(len, completion(model, bad_words=[w]).sampling.bad_words)) for w in words]
    counts = list(accumulate(each))
    fitting = sum(count <= MAX_BAD_WORD_TOKENS for count in counts)
    assert fitting < len(words)
    taken = completion(model, bad_words=words[:fitting]).sampling.bad_words
    assert sum(map(len, taken)) == counts[fitting - 1]
    field, message = refusal(model, bad_words=words[: fitting + 1])
    assert field == "bad_words"
    assert message == (
        f"bad_words has {counts[fitting]} tokens in all spellings; "
        f"it must have at most {MAX_BAD_WORD_TOKENS}"
    )


def test_the_same_over_grpc(model: Model) -> None:
    def parse(**said: Any) -> GenerateRequest:
        message = inference_pb2.GenerateRequest(
            text="hi", sampling=inference_pb2.SamplingOptions(**said)
        )
        return parse_generate(message, model, MAX_MODEL_LEN, "r1", random.Random()).request

    grammar = inference_pb2.Grammar(kind=inference_pb2.GRAMMAR_KIND_REGEX, text="a+")
    said = parse(grammar=grammar, allowed_token_ids=[5], bad_words=["fox"]).sampling
    assert said == replace(
        completion(model, guided_regex="a+", allowed_token_ids=[5], bad_words=["fox"]).sampling
    )
    schema = inference_pb2.Grammar(
        kind=inference_pb2.GRAMMAR_KIND_JSON_SCHEMA, text=json.dumps(PERSON)
    )
    assert is_in('{"name":"","age":0}', parse(grammar=schema).sampling.grammar)
    with pytest.raises(RequestError, match=r"grammar\.kind is 0; it must be one of \[1, 2, 3, 4\]"):
        parse(grammar=inference_pb2.Grammar(text="a"))
    with pytest.raises(RequestError, match=r"grammar\.text is a string, but not JSON"):
        parse(grammar=inference_pb2.Grammar(kind=inference_pb2.GRAMMAR_KIND_JSON_SCHEMA, text="{"))
    choice = inference_pb2.Grammar(kind=inference_pb2.GRAMMAR_KIND_CHOICE, choices=["yes", "no"])
    chosen = parse(grammar=choice).sampling.grammar
    assert [is_in(text, chosen) for text in ("yes", "no", "maybe")] == [True, True, False]
    with pytest.raises(RequestError, match=r"grammar\.choices has 0 entries; it must have 1 to"):
        parse(grammar=inference_pb2.Grammar(kind=inference_pb2.GRAMMAR_KIND_CHOICE))
    choice.text = "yes"
    with pytest.raises(RequestError, match=r"grammar\.text is there; GRAMMAR_KIND_CHOICE has none"):
        parse(grammar=choice)


@given(texts=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=20))
def test_choices_are_taken_as_they_are(texts: list[str]) -> None:
    grammar = compiled(GrammarSpec.choice(texts, "guided_choice"))
    assert all(is_in(text, grammar) for text in texts)
    assert not is_in(max(texts, key=len) + "x", grammar) or max(texts, key=len) + "x" in texts


@given(text=st.text(max_size=200), kind=st.sampled_from(list(GrammarKind)))
def test_whatever_is_sent_is_read_or_refused(text: str, kind: GrammarKind) -> None:
    refused = None
    try:
        source = compiled(GrammarSpec(kind, text, "field"))
    except RequestError as error:
        refused = error
    if refused is None:
        assert not matcher_of(source).is_error()
    else:
        assert refused.field == "field"
        assert refused.message.startswith("field")
