"""Greedy output of the real model equals transformers' own when sequences run one at a time."""

import pytest

from tests.e2e.exactness import PAIRWISE, Setting, check
from tests.e2e.reference import Prompt, Reference

ALONE = [setting for setting in PAIRWISE if setting.concurrency == 1]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ALONE, ids=str)
def test_pairwise(reference: Reference, prompts: list[Prompt], setting: Setting) -> None:
    check(reference, prompts, setting)
