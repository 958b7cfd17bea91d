"""The default model, converted once per machine, and the oracle that holds its answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quire.models import resolve
from tests.e2e.prompts import load_prompts
from tests.e2e.reference import Prompt, Reference


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return resolve("smollm2", lambda message: None).path


@pytest.fixture(scope="module")
def prompts(model_dir: Path) -> list[Prompt]:
    return load_prompts(model_dir)


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Iterator[Reference]:
    oracle = Reference(model_dir)
    yield oracle
    print(f"\nanswers in which a tie within 1e-4 decided a token: {oracle.num_ties}")
