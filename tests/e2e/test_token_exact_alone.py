"""Greedy output equals transformers' own when a replica runs one sequence at a time."""

from pathlib import Path

import pytest

from tests.e2e.exactness import EVERY, PAIRWISE, Setting, check
from tests.e2e.reference import Prompt, Reference

ALONE = [setting for setting in EVERY if setting.concurrency == 1]


@pytest.mark.parametrize("setting", [s for s in ALONE if s in PAIRWISE], ids=str)
def test_pairwise(
    model_dir: Path, reference: Reference, prompts: list[Prompt], setting: Setting
) -> None:
    check(model_dir, reference, prompts, setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [s for s in ALONE if s not in PAIRWISE], ids=str)
def test_every_combination(
    model_dir: Path, reference: Reference, prompts: list[Prompt], setting: Setting
) -> None:
    check(model_dir, reference, prompts, setting)
