"""Greedy output equals transformers' own when sequences share steps."""

from pathlib import Path

import pytest

from tests.e2e.exactness import EVERY, PAIRWISE, Setting, check
from tests.e2e.reference import Prompt, Reference

SHARED = [setting for setting in EVERY if setting.concurrency > 1]


def test_the_oracle_rejects_a_wrong_token(reference: Reference, prompts: list[Prompt]):
    answer = reference.answer(prompts[18])
    reference.check(prompts[18], answer)
    with pytest.raises(AssertionError, match="below the best logit"):
        reference.check(prompts[18], [*answer[:10], answer[10] + 1, *answer[11:]])


def test_the_oracle_rejects_an_answer_that_ends_early(reference: Reference, prompts: list[Prompt]):
    with pytest.raises(AssertionError, match="ended after 10 tokens"):
        reference.check(prompts[18], reference.answer(prompts[18])[:10])


@pytest.mark.parametrize("setting", [s for s in SHARED if s in PAIRWISE], ids=str)
def test_pairwise(model_dir: Path, reference: Reference, prompts: list[Prompt], setting: Setting):
    check(model_dir, reference, prompts, setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [s for s in SHARED if s not in PAIRWISE], ids=str)
def test_every_combination(
    model_dir: Path, reference: Reference, prompts: list[Prompt], setting: Setting
):
    check(model_dir, reference, prompts, setting)


@pytest.mark.slow
def test_generate_itself_says_the_same(reference: Reference, prompts: list[Prompt]):
    for prompt in prompts:
        reference.check(prompt, reference.answer(prompt))
