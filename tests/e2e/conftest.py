"""Two models and the oracles that hold their answers: the default one, converted once per machine,
and one with random weights that a step costs next to nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire.models import resolve
from tests.chaos.small import small_model
from tests.e2e.exactness import MAX_MODEL_LEN
from tests.e2e.prompts import load_prompts, respelled
from tests.e2e.reference import Prompt, Reference
from tests.ties import TIES

RecordProperty = Callable[[str, object], None]


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
def reference(oracle: Reference, record_property: RecordProperty) -> Iterator[Reference]:
    """The oracle; the ties that it accepts in this test are reported."""
    yield from _reporting(oracle, record_property)


@pytest.fixture(scope="module")
def small_prompts(prompts: list[Prompt]) -> list[Prompt]:
    """As long as the others, and as much alike."""
    return [respelled(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def small_oracle(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(small_model(tmp_path_factory.mktemp("models") / "small", MAX_MODEL_LEN))


@pytest.fixture
def small_reference(
    small_oracle: Reference, record_property: RecordProperty
) -> Iterator[Reference]:
    """As `reference`, of the small model."""
    yield from _reporting(small_oracle, record_property)


def _reporting(oracle: Reference, record_property: RecordProperty) -> Iterator[Reference]:
    before = oracle.num_ties
    yield oracle
    record_property(TIES, oracle.num_ties - before)
