"""Whatever is chosen from the masks becomes an answer of the language: no model is needed for that.

Choices are uniform over the real vocabulary, so paths are taken that a model would hardly take.
"""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.grammar import compiled
from gateway.model import Model, load_model
from gateway.openai.structure import StructuredBody, requested_grammar
from tests.e2e.languages import HARD, Language, languages
from tests.worker.builders import admission, column, plan
from worker.constraints import Constraints
from worker.grammars import Grammars
from worker.plans import Sampling

MAX_TOKENS = 400
MAX_SLACK = 20
"""Tokens after which the shortest way out is taken."""


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Model:
    return load_model(model_dir)


@pytest.fixture(scope="module")
def grammars(model_dir: Path, model: Model) -> Grammars:
    return Grammars(model_dir / "tokenizer.json", model.tokenizer.vocab_size)


def walk(model: Model, grammars: Grammars, language: Language, dice: random.Random) -> str | None:
    """A random answer; None if it does not end in time."""
    spec = requested_grammar(StructuredBody(**language.fields))
    assert spec is not None
    ends = tuple(model.eos_token_ids)
    sampling = Sampling(grammar=compiled(spec), stop_token_ids=ends)
    constraints = Constraints(1, model.tokenizer.vocab_size, grammars)
    constraints.apply(plan(1, admit=[admission(0, [5], [1], sampling=sampling)]))
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        constraints.refresh(np.array([0]))
        bits = np.unpackbits(constraints.masks[0].view(np.uint8), bitorder="little")
        choices = np.flatnonzero(bits).tolist()
        assert choices, f"a dead end after {tokens}"
        out = [token for token in choices if token in ends or _closes(model, token)]
        token = dice.choice(out if out and len(tokens) > MAX_SLACK else choices)
        if token in ends:
            return model.tokenizer.decode(tokens, skip_special_tokens=False)
        tokens.append(token)
        constraints.advance(column([0]), column([0]), column([token]), column([0]))
    return None


def _closes(model: Model, token: int) -> bool:
    return model.tokenizer.bytes_of[token] in (b'"', b"}", b"]", b'"}', b'"]', b"0")


@pytest.mark.parametrize("name", HARD)
def test_hard_languages(model: Model, grammars: Grammars, name: str) -> None:
    answers = [walk(model, grammars, HARD[name], random.Random(seed)) for seed in range(6)]
    for answer in answers:
        if answer is not None:
            HARD[name].check(answer)
    assert any(answer is not None for answer in answers)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(language=languages, seed=st.integers(0, 1 << 32))
def test_random_languages(model: Model, grammars: Grammars, language: Language, seed: int) -> None:
    answer = walk(model, grammars, language, random.Random(seed))
    if answer is not None:
        language.check(answer)
