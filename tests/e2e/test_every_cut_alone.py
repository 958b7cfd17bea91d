"""Greedy output of the small model equals transformers' own when sequences run one at a time."""

import pytest

from tests.e2e.exactness import EVERY, PAIRWISE, Setting, check, parameters
from tests.e2e.reference import Prompt, Reference

ALONE = [setting for setting in EVERY if setting.concurrency == 1]


@pytest.mark.parametrize("setting", parameters(ALONE, PAIRWISE.__contains__))
def test_every_combination(
    small_reference: Reference, small_prompts: list[Prompt], setting: Setting
) -> None:
    check(small_reference, small_prompts, setting)
