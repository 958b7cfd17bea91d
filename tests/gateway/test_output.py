"""From a sample's tokens to its text and its end."""

import json
import random
from typing import Any

from gateway.model import Model
from gateway.openai.chat import parse_chat
from gateway.output import SampleOutput
from tests.gateway.tiny_model import EOS, MAX_MODEL_LEN


def output(model: Model, /, **fields: Any) -> SampleOutput:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    call = parse_chat(json.dumps(body).encode(), model, MAX_MODEL_LEN, "r1", random.Random())
    return SampleOutput(call.requests[0], model.tokenizer)


def tokens(model: Model, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special_tokens=False)


def test_the_end_token_ends_it_and_is_not_shown(model: Model) -> None:
    sample = output(model)
    text, count = sample.feed([*tokens(model, "a fox"), EOS])
    assert (text + sample.close(), sample.stopped, sample.stop_reason) == ("a fox", True, None)
    assert sample.num_tokens == count


def test_a_stop_token_of_the_client_is_its_reason(model: Model) -> None:
    letters = tokens(model, "xyz")
    sample = output(model, stop_token_ids=[letters[-1]])
    assert sample.feed(letters) == ("xy", len(letters))
    assert sample.stop_reason == letters[-1]


def test_what_ended_it_is_shown_when_asked_for(model: Model) -> None:
    letters = tokens(model, "xyz")
    sample = output(model, stop_token_ids=[letters[-1]], include_stop_str_in_output=True)
    assert sample.feed(letters) == ("xyz", len(letters))


def test_tokens_after_a_stop_string_do_not_count(model: Model) -> None:
    letters = tokens(model, "xqzqx")
    assert len(letters) == 5
    sample = output(model, stop=["zq"])
    assert sample.feed(letters) == ("xq", 4)
    assert (sample.num_tokens, sample.stop_reason, sample.close()) == (4, "zq", "")


def test_what_is_held_back_is_shown_when_it_ends_otherwise(model: Model) -> None:
    sample = output(model, stop=["zqzq"])
    text, _ = sample.feed(tokens(model, "xzq"))
    assert (text, sample.close(), sample.stopped) == ("x", "zq", False)


def test_an_end_token_inside_a_possible_stop_string_shows_it(model: Model) -> None:
    sample = output(model, stop=["zqzq"])
    text, count = sample.feed([*tokens(model, "xzq"), EOS])
    assert (text, sample.close(), sample.stop_reason) == ("x", "zq", None)
    assert count == 4


def test_min_tokens_holds_for_stop_strings(model: Model) -> None:
    sample = output(model, stop=["q"], min_tokens=3)
    assert sample.feed(tokens(model, "qzqzq")) == ("qzqz", 5)


def test_special_tokens_are_shown_when_asked_for(model: Model) -> None:
    body: dict[str, Any] = {"ignore_eos": True, "skip_special_tokens": False}
    assert output(model, **body).feed([EOS])[0] == "<|im_end|>"
    assert output(model, ignore_eos=True).feed([EOS]) == ("", 1)
