"""SamplingParams refuses what cannot be served, and says field, limit and value."""

import math
from typing import Any

import pytest

from quire import SamplingParams, StructuredOutputsParams


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", -1, "max_tokens is -1; it must be at least 1"),
        ("max_tokens", 0, "max_tokens is 0; it must be at least 1"),
        ("n", 0, "n is 0; it must be 1 to 128"),
        ("n", 10_000, "n is 10000; it must be 1 to 128"),
        ("temperature", -1.0, "temperature is -1.0; it must be at least 0 and at most 2"),
        ("temperature", math.nan, "temperature is nan; it must be at least 0 and at most 2"),
        ("temperature", "hot", "temperature is 'hot'; it must be a number"),
        ("top_p", 0.0, "top_p is 0.0; it must be above 0 and at most 1"),
        ("top_k", -2, "top_k is -2; it must be at least 0 (0 keeps all)"),
        ("top_k", 1.5, "top_k is 1.5; it must be an integer"),
        ("min_p", 1.5, "min_p is 1.5; it must be at least 0 and at most 1"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0.0; it must be above 0"),
        ("repetition_penalty", math.inf, "repetition_penalty is inf; it must be above 0"),
        ("presence_penalty", 3, "presence_penalty is 3; it must be at least -2 and at most 2"),
        ("logprobs", 21, "logprobs is 21; it must be 0 to 20"),
        ("seed", -1, f"seed is -1; it must be 0 to {2**64 - 1}"),
        ("logit_bias", {7: 200.0}, "logit_bias is 200.0; it must be at least -100 and at most 100"),
        ("stop", ["a", ""], "stop has an empty text; each must have at least 1 character"),
        ("n", True, "n is True; it must be an integer"),
        ("prompt_logprobs", 21, "prompt_logprobs is 21; it must be 0 to 20"),
        ("allowed_token_ids", [], "allowed_token_ids has 0 tokens; it must have at least 1"),
        ("allowed_token_ids", [-1], f"a token id is -1; it must be 0 to {2**31 - 1}"),
        ("bad_words", "fox", "bad_words is 'fox'; it must be a list of words"),
        (
            "truncate_prompt_tokens",
            0,
            "truncate_prompt_tokens is 0; it must be at least 1, or -1 for as many as fit",
        ),
        (
            "structured_outputs",
            {"regexp": "a"},
            "structured_outputs has regexp; it must have one of json, regex, choice, grammar, "
            "json_object",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_with_field_limit_and_value(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match="must") as refusal:
        SamplingParams(**{field: value})
    assert str(refusal.value) == message


def test_min_tokens_is_a_lower_limit_of_max_tokens() -> None:
    with pytest.raises(ValueError, match="max_tokens is 4; it must be at least 8"):
        SamplingParams(min_tokens=8, max_tokens=4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "structured_outputs has none; it must have one of json, regex, choice, grammar"),
        ({"json_object": False}, "structured_outputs has none; it must have one of json"),
        (
            {"regex": "a", "choice": ["a"]},
            "structured_outputs has regex and choice; it must have one of json",
        ),
        ({"regex": 5}, "structured_outputs.regex is 5; it must be of type str"),
        ({"choice": "yes"}, "structured_outputs.choice is 'yes'; it must be of type Sequence"),
        ({"json": 5}, "structured_outputs.json is 5; it must be of type str or Mapping"),
    ],
)
def test_an_output_has_one_structure(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must") as refusal:
        StructuredOutputsParams(**said)
    assert str(refusal.value).startswith(message)


def test_a_structure_may_be_a_dict_of_its_fields() -> None:
    said = SamplingParams(structured_outputs={"choice": ["a"]})
    assert said.structured_outputs == StructuredOutputsParams(choice=["a"])
    assert said == SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"]))
    with pytest.raises(ValueError, match="structured_outputs has none; it must have one of json"):
        SamplingParams(structured_outputs={})
    nonsense: Any = "a"
    with pytest.raises(ValueError, match="structured_outputs is 'a'; it must be Structured"):
        SamplingParams(structured_outputs=nonsense)


def test_what_vllm_says_for_nothing_is_nothing() -> None:
    nothing: Any = None
    said = SamplingParams(
        stop=nothing, stop_token_ids=nothing, bad_words=nothing, logit_bias=nothing, top_k=-1
    )
    assert said == SamplingParams()


def test_only_a_prompt_that_is_scored_needs_no_output() -> None:
    assert SamplingParams(max_tokens=0, prompt_logprobs=0).max_tokens == 0
    with pytest.raises(ValueError, match="max_tokens is 0; it must be at least 1"):
        SamplingParams(max_tokens=0)


def test_one_stop_text_is_a_list_of_one() -> None:
    assert SamplingParams(stop="END").stop == ("END",)


def test_the_edges_of_every_range_are_inside() -> None:
    SamplingParams(
        n=128,
        temperature=0,
        top_p=1,
        min_p=1,
        seed=2**64 - 1,
        max_tokens=None,
        presence_penalty=-2,
        frequency_penalty=2,
        logprobs=20,
        logit_bias={0: -100, 1: 100},
    )
