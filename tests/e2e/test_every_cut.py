"""Greedy output of the small model equals transformers' own, however the work is cut up."""

import dataclasses

import pytest

from tests.e2e.exactness import EVERY, PAIRWISE, Setting, check, parameters
from tests.e2e.reference import TIE, Prompt, Reference

SHARED = [setting for setting in EVERY if setting.concurrency > 1]


def test_one_token_of_a_prompt_changes_the_answer(
    small_reference: Reference, small_prompts: list[Prompt]
) -> None:
    """Wherever it stands, so KV that is missing or in a wrong place cannot go unnoticed."""
    prompt = small_prompts[-1]
    answer = small_reference.answer(prompt)
    for place in range(len(prompt.token_ids)):
        ids = list(prompt.token_ids)
        ids[place] = 3 if ids[place] != 3 else 4
        other = dataclasses.replace(prompt, token_ids=tuple(ids))
        assert max(small_reference.gaps(other, answer)) > 1000 * TIE, f"token {place}"


@pytest.mark.parametrize("setting", parameters(SHARED, PAIRWISE.__contains__))
def test_every_combination(
    small_reference: Reference, small_prompts: list[Prompt], setting: Setting
) -> None:
    check(small_reference, small_prompts, setting)
