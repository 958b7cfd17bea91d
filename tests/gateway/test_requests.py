"""What a valid body turns into."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.model import Model, load_model
from gateway.openai.call import Call
from gateway.openai.chat import parse_chat
from gateway.openai.completions import parse_completion
from tests.gateway import tiny_model
from tests.gateway.tiny_model import EOS, MAX_MODEL_LEN

HELLO = [{"role": "user", "content": "hello"}]


def chat(model: Model, /, **fields: Any) -> Call:
    content = json.dumps({"messages": HELLO, **fields}).encode()
    return parse_chat(content, model, MAX_MODEL_LEN, "r1", random.Random())


def completion(model: Model, /, **fields: Any) -> Call:
    return parse_completion(
        json.dumps(fields).encode(), model, MAX_MODEL_LEN, "r1", random.Random()
    )


def test_what_is_not_said_takes_openais_defaults(model: Model) -> None:
    call = chat(model)
    request = call.requests[0]
    sampling = request.sampling
    assert (request.n, request.stop, request.priority, request.cache_salt) == (1, (), 0, "")
    assert request.eos_token_ids == {EOS}
    assert request.max_tokens == MAX_MODEL_LEN - len(request.prompt_token_ids)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert sampling.num_logprobs is None
    assert not call.streams
    assert call.request_id == "r1"


def test_a_models_own_recommendation_comes_before_openais(tmp_path: Path) -> None:
    directory = tiny_model.build(tmp_path / "tiny", temperature=0.6, top_k=20, top_p=0.95)
    sampling = chat(load_model(directory)).requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.95)
    said = chat(load_model(directory), temperature=0.1).requests[0].sampling
    assert (said.temperature, said.top_k) == (0.1, 20)


def test_an_assistant_that_refused_said_its_refusal(model: Model) -> None:
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "no"}]
    refused = [said[0], {"role": "assistant", "content": None, "refusal": "no", "annotations": []}]
    tokens = [chat(model, messages=turns).requests[0].prompt_token_ids for turns in (said, refused)]
    assert tokens[0].tolist() == tokens[1].tolist()


def test_everything_said_arrives(model: Model) -> None:
    call = chat(
        model,
        model="tiny",
        n=3,
        max_completion_tokens=7,
        max_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.2,
        logit_bias={"9": 1, "7": -2.5},
        seed=-1,
        stop="END",
        stop_token_ids=[5],
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=True,
        top_logprobs=2,
        priority=-3,
        cache_salt="tenant-1",
        request_id="mine",
        user="somebody",
        stream=True,
        stream_options={"include_usage": True},
        metadata={"a": "label"},
    )
    request = call.requests[0]
    assert (request.n, request.max_tokens, request.seed) == (3, 7, (1 << 64) - 1)
    assert request.stop == ("END",)
    assert request.stop_token_ids == {5}
    assert request.eos_token_ids == frozenset()
    assert request.include_stop_str_in_output
    assert not request.skip_special_tokens
    assert (request.priority, request.cache_salt, request.request_id) == (-3, "tenant-1", "mine")
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert sampling.logit_bias == ((7, -2.5), (9, 1.0))
    assert (sampling.min_tokens, sampling.num_logprobs) == (2, 2)
    assert call.streams
    assert call.include_usage


def test_temperatures_next_to_zero_are_greedy(model: Model) -> None:
    assert chat(model, temperature=1e-30).requests[0].sampling.temperature == 0.0


def test_each_request_without_a_seed_gets_its_own_from_the_dice(model: Model) -> None:
    content = json.dumps({"prompt": ["a"] * 8}).encode()

    def seeds(number: int) -> list[int]:
        call = parse_completion(content, model, MAX_MODEL_LEN, "r1", random.Random(number))
        return [request.seed for request in call.requests]

    assert len(set(seeds(1) + seeds(2))) == 16
    assert seeds(1) == seeds(1)


def test_text_parts_are_joined_and_developers_are_systems(model: Model) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = chat(model, messages=[{"role": "developer", "content": parts}])
    text = model.tokenizer.decode(
        call.requests[0].prompt_token_ids.tolist(), skip_special_tokens=False
    )
    assert text == "<|im_start|>system\none\ntwo<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "num_requests"),
    [("the fox", 1), (["the fox", "a dog"], 2), ([5, 6], 1), ([[5, 6], [7]], 2)],
)
def test_prompts_come_in_four_forms(model: Model, prompt: Any, num_requests: int) -> None:
    call = completion(model, prompt=prompt, n=2)
    assert len(call.requests) == num_requests
    assert call.num_choices == 2 * num_requests
    first = call.requests[0].prompt_token_ids
    if isinstance(prompt, str):
        assert first.tolist() == model.tokenizer.encode("the fox", add_special_tokens=True)
    assert first.dtype == np.int32


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, 3),
        ({"truncate_prompt_tokens": 100}, 100),
        ({"truncate_prompt_tokens": 256, "prompt": [5, 6]}, 2),
        ({"truncate_prompt_tokens": -1}, MAX_MODEL_LEN - 1),
        ({"truncate_prompt_tokens": -1, "max_tokens": 56}, 200),
    ],
)
def test_a_truncated_prompt_keeps_its_last_tokens(
    model: Model, fields: dict[str, Any], kept: int
) -> None:
    tokens = fields.pop("prompt", list(range(300)))
    call = completion(model, prompt=tokens, echo=True, **fields)
    assert call.requests[0].prompt_token_ids.tolist() == tokens[-kept:]
    assert call.prompts == (model.tokenizer.decode(tokens[-kept:], skip_special_tokens=False),)


def test_a_truncated_text_may_be_too_long_and_its_echo_is_what_is_left(model: Model) -> None:
    call = completion(model, prompt="x" * 100_000 + "yz", truncate_prompt_tokens=3, echo=True)
    assert call.prompts == ("xyz",)
    long = chat(
        model, messages=[{"role": "user", "content": "x" * 9_999}], truncate_prompt_tokens=9
    )
    assert len(long.requests[0].prompt_token_ids) == 9


def test_the_best_of_several_samples_needs_their_logprobs(model: Model) -> None:
    call = completion(model, prompt="xyz", best_of=4, n=2)
    assert (call.requests[0].n, call.num_kept) == (4, 2)
    assert (call.requests[0].sampling.num_logprobs, call.wants_logprobs) == (0, False)
    equal = completion(model, prompt="xyz", best_of=2, n=2, stream=True)
    assert (equal.requests[0].n, equal.num_kept) == (2, None)
    assert equal.requests[0].sampling.num_logprobs is None


@pytest.mark.parametrize(
    ("fields", "of_prompt", "of_output"),
    [
        ({"logprobs": 3}, None, 3),
        ({"logprobs": 3, "echo": True}, 3, 3),
        ({"prompt_logprobs": 2}, 2, None),
        ({"prompt_logprobs": 0}, 0, None),
        ({"prompt_logprobs": 5, "logprobs": 1, "echo": True}, 5, 1),
        ({"prompt_logprobs": 0, "logprobs": 4, "echo": True}, 4, 4),
    ],
)
def test_prompts_have_logprobs_where_they_are_asked_for_or_echoed(
    model: Model, fields: dict[str, Any], of_prompt: int | None, of_output: int | None
) -> None:
    sampling = completion(model, prompt="xyz", **fields).requests[0].sampling
    assert (sampling.num_prompt_logprobs, sampling.num_logprobs) == (of_prompt, of_output)


def test_no_output_at_all_is_one_token_that_nobody_sees(model: Model) -> None:
    for fields in ({"echo": True}, {"prompt_logprobs": 0}):
        call = completion(model, prompt="xyz", max_tokens=0, **fields)
        assert (call.requests[0].max_tokens, call.is_prompt_only) == (1, True)
    assert not completion(model, prompt="xyz", max_tokens=1, echo=True).is_prompt_only


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_a_directory_without_its_files_is_refused(
    tmp_path: Path, broken: str, message: str
) -> None:
    directory = tiny_model.build(tmp_path / "tiny")
    (directory / broken).unlink()
    with pytest.raises(ModelError, match=message):
        load_model(directory)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    directory = tiny_model.build(tmp_path / "tiny")
    tiny_model.write_json(directory / "config.json", {"vocab_size": 300})
    with pytest.raises(ModelError, match=r"token id 399, but vocab_size in config.json is 300"):
        load_model(directory)


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("recommended", "message"),
    [
        ({"temperature": 2.5}, "temperature is 2.5; it must be at most 2"),
        ({"temperature": "hot"}, 'temperature is "hot"; it must be a number'),
        ({"temperature": math.nan}, "temperature is nan; it must be at least 0"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be an integer"),
        ({"top_k": True}, "top_k is true; it must be an integer"),
        ({"top_k": -2}, "top_k is -2; it must be at least -1"),
        ({"top_p": 0}, "top_p is 0; it must be above 0"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be at most 1"),
        ({"repetition_penalty": 101}, "repetition_penalty is 101; it must be at most 100"),
    ],
)
def test_recommended_sampling_that_no_client_could_ask_for_is_refused_at_the_start(
    tmp_path: Path, recommended: dict[str, object], message: str
) -> None:
    directory = tiny_model.build(tmp_path / "tiny", **recommended)
    with pytest.raises(ModelError) as refused:
        load_model(directory)
    assert str(refused.value) == f"{directory / 'generation_config.json'}: {message}"


def test_a_template_file_comes_before_the_configured_one(tmp_path: Path) -> None:
    directory = tiny_model.build(tmp_path / "tiny")
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    call = chat(load_model(directory))
    expected = load_model(directory).tokenizer.encode("hello!", add_special_tokens=False)
    assert call.requests[0].prompt_token_ids.tolist() == expected
