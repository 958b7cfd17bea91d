"""Every limit that an operator may set is the one that requests are held to."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.limits import DEFAULT_LIMITS, RequestLimits, described_limits, parse_limits
from gateway.model import Model
from gateway.openai.chat import parse_chat
from gateway.openai.completions import parse_completion
from gateway.openai.embeddings import parse_embeddings
from protos import limits as behind

MAX_MODEL_LEN = 1024
NAMES = [each.name for each in fields(RequestLimits)]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def completion(model: Model, body: Mapping[str, Any]) -> object:
    content = json.dumps({"prompt": "a", **body}).encode()
    return parse_completion(content, model, MAX_MODEL_LEN, "r1", random.Random())


def chat(model: Model, body: Mapping[str, Any]) -> object:
    said = {"messages": [{"role": "user", "content": "hello"}], **body}
    return parse_chat(json.dumps(said).encode(), model, MAX_MODEL_LEN, "r1", random.Random())


def embedding(model: Model, body: Mapping[str, Any]) -> object:
    return parse_embeddings(json.dumps(body).encode(), model, MAX_MODEL_LEN, 8, "r1")


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


Parse = Callable[[Model, Mapping[str, Any]], object]

# The limit; a request that asks for one more than `lowered`, and what it is told.
CASES: list[tuple[str, int, Parse, dict[str, Any], str]] = [
    ("n", 2, chat, {"n": 3}, "n is 3; it must be at most 2"),
    ("n", 2, completion, {"n": 3}, "n is 3; it must be at most 2"),
    ("n", 2, completion, {"best_of": 3}, "best_of is 3; it must be at most 2"),
    (
        "logprobs",
        4,
        chat,
        {"logprobs": True, "top_logprobs": 5},
        "top_logprobs is 5; it must be at most 4",
    ),
    ("logprobs", 4, completion, {"logprobs": 5}, "logprobs is 5; it must be at most 4"),
    ("logprobs", 0, chat, {"prompt_logprobs": 1}, "prompt_logprobs is 1; it must be at most 0"),
    ("stop", 1, chat, {"stop": ["x", "y"]}, "stop has 2 strings; it must have at most 1"),
    (
        "stop_characters",
        3,
        chat,
        {"stop": "abcd"},
        "stop has a string of 4 characters; each must have 1 to 3",
    ),
    (
        "stop_token_ids",
        1,
        chat,
        {"stop_token_ids": [5, 6]},
        "stop_token_ids has 2 tokens; it must have at most 1",
    ),
    (
        "logit_bias",
        1,
        chat,
        {"logit_bias": {"5": 1, "6": 1}},
        "logit_bias has 2 tokens; it must have at most 1",
    ),
    ("bad_words", 1, chat, {"bad_words": ["x", "y"]}, "bad_words has 2 words; it must have at"),
    (
        "bad_word_characters",
        3,
        chat,
        {"bad_words": ["abcd"]},
        "bad_words has a word of 4 characters; each must have 1 to 3",
    ),
    (
        "beam_tokens",
        8,
        completion,
        {"use_beam_search": True, "n": 2, "max_tokens": 9},
        "max_tokens is 9; it must be at most 8",
    ),
    ("prompts", 1, completion, {"prompt": ["a", "b"]}, "prompt has 2 entries; it must have at"),
    (
        "choices",
        3,
        completion,
        {"prompt": ["a", "b"], "n": 2},
        "n is 2 and prompt has 2 entries; together they must make at most 3 choices",
    ),
    ("inputs", 1, embedding, {"input": ["a", "b"]}, "input has 2 entries; it must have at most 1"),
    ("tools", 1, chat, {"tools": [tool("f"), tool("g")]}, "tools has 2 entries; it must have at"),
    (
        "tool_bytes",
        59,
        chat,
        {"tools": [tool("f", parameters=SCHEMA)]},
        "tools[0].parameters has 60 bytes; it must have at most 59",
    ),
    (
        "tools_bytes",
        119,
        chat,
        {"tools": [tool("f", parameters=SCHEMA), tool("g", parameters=SCHEMA)]},
        "tools has 120 bytes; it must have at most 119",
    ),
    (
        "tool_description",
        3,
        chat,
        {"tools": [tool("f", description="abcd")]},
        "tools[0] has a description of 4 characters; it must have at most 3",
    ),
    (
        "grammar_bytes",
        3,
        completion,
        {"guided_regex": "abcd"},
        "guided_regex has 4 bytes; it must have at most 3",
    ),
    (
        "schema_depth",
        3,
        chat,
        {"guided_json": SCHEMA},
        "guided_json is nested too deeply; it must be at most 3 deep",
    ),
    (
        "schema_values",
        4,
        chat,
        {"guided_json": SCHEMA},
        "guided_json has more values in it than the 4 that it may have",
    ),
    (
        "choice",
        1,
        chat,
        {"guided_choice": ["yes", "no"]},
        "guided_choice has 2 entries; it must have 1 to 1",
    ),
]


def test_every_limit_is_among_the_cases() -> None:
    assert {name for name, *_ in CASES} == set(NAMES)


@pytest.mark.parametrize(("name", "lowered", "parse", "body", "message"), CASES)
def test_a_lowered_limit_refuses_what_was_let_through(
    hermes: Model, name: str, lowered: int, parse: Parse, body: dict[str, Any], message: str
) -> None:
    parse(hermes, body)
    limits = parse_limits([f"{name}={lowered}"])
    with pytest.raises(RequestError) as caught:
        parse(replace(hermes, limits=limits), body)
    assert str(caught.value).startswith(message)
    parse(replace(hermes, limits=parse_limits([f"{name}={lowered + 1}"])), body)


def test_a_raised_limit_lets_more_through(hermes: Model) -> None:
    body = {"stop": ["x"] * 17}
    with pytest.raises(RequestError):
        chat(hermes, body)
    chat(replace(hermes, limits=parse_limits(["stop=17"])), body)


def test_fewer_logprobs_leave_a_search_its_beams(hermes: Model) -> None:
    model = replace(hermes, limits=parse_limits(["logprobs=0"]))
    completion(model, {"use_beam_search": True, "n": 3, "max_tokens": 8})


def test_the_schema_inside_a_larger_grammar_is_held_to_its_limits(hermes: Model) -> None:
    model = replace(hermes, limits=parse_limits(["schema_values=4"]))
    body = {"tools": [tool("f")], "guided_json": SCHEMA}
    chat(hermes, body)
    with pytest.raises(RequestError, match="guided_json has more values in it than the 4 that"):
        chat(model, body)


def test_nothing_said_is_the_defaults_and_the_last_of_a_name_holds() -> None:
    assert parse_limits([]) == DEFAULT_LIMITS
    assert parse_limits(["n=4", "stop=0", "n=5"]) == RequestLimits(n=5, stop=0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("n", "limit is 'n'; it must be NAME=VALUE"),
        ("m=1", "limit 'm' does not exist; there are n, logprobs, stop, "),
        ("n=", "limit n is ''; it must be a whole number"),
        ("n=-1", "limit n is '-1'; it must be a whole number"),
        ("n=0", "limit n is 0; it must be at least 1"),
        ("n=129", "limit n is 129; it must be at most 128"),
        ("logprobs=21", "limit logprobs is 21; it must be at most 20"),
        ("grammar_bytes=131073", "limit grammar_bytes is 131073; it must be at most 131072"),
    ],
)
def test_a_wrong_limit_is_refused(said: str, message: str) -> None:
    with pytest.raises(ValueError, match="limit") as caught:
        parse_limits([said])
    assert str(caught.value).startswith(message)


def test_help_has_every_name_with_its_default() -> None:
    told = described_limits()
    for name in NAMES:
        assert f"{name}={getattr(DEFAULT_LIMITS, name)} (" in told


def test_no_limit_may_be_more_than_scheduler_and_worker_take() -> None:
    most = {each.name: each.metadata["most"] for each in fields(RequestLimits)}
    assert most["n"] == behind.MAX_SAMPLES
    assert most["logprobs"] == behind.MAX_LOGPROBS
    assert most["stop_token_ids"] < behind.MAX_STOP_TOKENS  # which the model's own are among
    assert most["logit_bias"] == behind.MAX_BIASED_TOKENS
