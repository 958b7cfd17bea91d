"""Greedy output of the real model equals transformers' own when sequences share steps."""

import pytest

from tests.e2e.exactness import PAIRWISE, REAL, Setting, check, parameters
from tests.e2e.reference import MAX_TIES, NUM_OUTPUT_TOKENS, TIE, Prompt, Reference

SHARED = [setting for setting in PAIRWISE if setting.concurrency > 1 and setting not in REAL]


def test_the_oracle_rejects_a_wrong_token(reference: Reference, prompts: list[Prompt]) -> None:
    answer = reference.answer(prompts[18])
    reference.check(prompts[18], answer)
    with pytest.raises(AssertionError, match="below the best logit"):
        reference.check(prompts[18], [*answer[:10], answer[10] + 1, *answer[11:]])


def test_the_oracle_rejects_an_answer_that_ends_early(
    reference: Reference, prompts: list[Prompt]
) -> None:
    with pytest.raises(AssertionError, match="ended after 10 tokens"):
        reference.check(prompts[18], reference.answer(prompts[18])[:10])


def test_the_oracle_accepts_few_ties(
    reference: Reference, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "num_ties", 0)
    monkeypatch.setattr(reference, "_accepted", set())
    monkeypatch.setattr(reference, "gaps", lambda prompt, output: [TIE / 2] * len(output))
    for token in range(MAX_TIES):
        reference.check(prompts[18], [token] * NUM_OUTPUT_TOKENS)
    with pytest.raises(AssertionError, match="ties decided more than 5 answers"):
        reference.check(prompts[18], [MAX_TIES] * NUM_OUTPUT_TOKENS)


@pytest.mark.parametrize("setting", parameters([*REAL, *SHARED], REAL.__contains__))
def test_pairwise(reference: Reference, prompts: list[Prompt], setting: Setting) -> None:
    check(reference, prompts, setting)


@pytest.mark.slow
def test_generate_itself_says_the_same(reference: Reference, prompts: list[Prompt]) -> None:
    for prompt in prompts:
        reference.check(prompt, reference.answer(prompt))
