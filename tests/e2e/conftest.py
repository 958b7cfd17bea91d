"""The default model, converted once per machine, and the oracle that holds its answers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire.models import resolve
from tests.e2e.prompts import load_prompts
from tests.e2e.reference import Prompt, Reference
from tests.ties import TIES


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return resolve("smollm2", lambda message: None).path


@pytest.fixture(scope="module")
def prompts(model_dir: Path) -> list[Prompt]:
    return load_prompts(model_dir)


@pytest.fixture(scope="module")
def oracle(model_dir: Path) -> Reference:
    return Reference(model_dir)


@pytest.fixture
def reference(
    oracle: Reference, record_property: Callable[[str, object], None]
) -> Iterator[Reference]:
    """The oracle; the ties that it accepts in this test are reported."""
    before = oracle.num_ties
    yield oracle
    record_property(TIES, oracle.num_ties - before)
