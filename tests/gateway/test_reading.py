"""Tokens of thoughts are counted while they stream by, however they are cut into pieces."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import Model, load_model
from gateway.openai.chat import parse_chat
from gateway.output import Finish, FinishReason, Piece, SampleOutput, shown_bytes
from gateway.parsing.deltas import gathered
from gateway.reading import Reading
from tests.gateway.test_thinking import BEGIN, END, LENGTH, write_thinker
from tests.gateway.tiny_model import EOS

THOUGHTS, WORDS = "so a 🙂 fox, 東京", "the lazy dog"
BODY = b'{"messages": [{"role": "user", "content": "hi"}]}'


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_thinker(tmp_path_factory.mktemp("thinkers") / "thinker"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose prompts begin its thoughts."""
    path = tmp_path_factory.mktemp("thinkers") / "opened"
    return load_model(write_thinker(path, "nothing", "<think>\n"))


def counted(model: Model, tokens: list[int], cuts: list[int], reason: FinishReason) -> int:
    """The thoughts among these tokens of an answer, which are fed in pieces."""
    call = parse_chat(BODY, model, LENGTH, "r1", Random())
    request = call.requests[0]
    output = SampleOutput(request, model.tokenizer)
    reading = Reading(call.parsing, shown_bytes(request, model.tokenizer))
    deltas = []
    bounds = sorted({0, *cuts, len(tokens)})
    for start, end in pairwise([*bounds, len(tokens)]):
        text, _ = output.feed(tokens[start:end])
        finish = None
        if start == end:
            text += output.close()
            finish = Finish(reason, None, 1, len(tokens), 0)
        deltas += reading.feed(Piece(0, text, tokens[start:end], None, finish))
    said = gathered(deltas)
    assert said.reasoning in (THOUGHTS, f"東京{THOUGHTS}", "")
    assert (reading.num_thought_tokens > 0) == bool(said.reasoning)
    return reading.num_thought_tokens


def spelled(model: Model, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special_tokens=False)


CUTS = st.lists(st.integers(1, 60))


@given(cuts=CUTS)
def test_only_what_is_told_as_thoughts_counts(thinker: Model, cuts: list[int]) -> None:
    thoughts = spelled(thinker, THOUGHTS)
    space = spelled(thinker, "\n")
    answer = [BEGIN, *space, *thoughts, *space, END, *space, *spelled(thinker, WORDS), EOS]
    assert counted(thinker, answer, cuts, FinishReason.STOP) == len(thoughts)


@given(cuts=CUTS)
def test_a_token_of_space_and_part_of_a_character_counts(thinker: Model, cuts: list[int]) -> None:
    thoughts = spelled(thinker, f" 東京{THOUGHTS}")
    assert thinker.tokenizer.bytes_of[thoughts[0]] == " 東".encode()[:-1]
    answer = [BEGIN, *thoughts, END, *spelled(thinker, WORDS), EOS]
    assert counted(thinker, answer, cuts, FinishReason.STOP) == len(thoughts)


@given(cuts=CUTS)
def test_thoughts_that_never_end_are_all_counted(opened: Model, cuts: list[int]) -> None:
    """Nothing of the answer says that they have begun."""
    thoughts = spelled(opened, THOUGHTS)
    assert counted(opened, thoughts, cuts, FinishReason.LENGTH) == len(thoughts)


@given(cuts=CUTS)
def test_an_answer_without_thoughts_has_none(thinker: Model, cuts: list[int]) -> None:
    said = f"{WORDS} <think>{WORDS}</think>"
    assert counted(thinker, [*spelled(thinker, said), EOS], cuts, FinishReason.STOP) == 0
