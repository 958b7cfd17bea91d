"""How much is asked, who judges ties, and where figures go."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire.models import resolve
from tests.chaos.judge import Judge
from tests.chaos.pauses import SLACK, Figures
from tests.chaos.scene import Scale, Scene, set_up
from tests.ties import TIES

SHORT = Scale(num_streams=16, max_tokens=40)
FULL = Scale(num_streams=64, max_tokens=200)
SCALES = [
    pytest.param(SHORT, id="short"),
    pytest.param(FULL, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]


def at_scale(name: str) -> pytest.MarkDecorator:
    """For tests that gain nothing from the other scale: of `short`, `full`."""
    chosen = [scale for scale in SCALES if scale.id == name]
    return pytest.mark.parametrize("scene", chosen, indirect=True, scope="module")


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return resolve("smollm2", lambda message: None).path


@pytest.fixture(scope="session")
def _oracle(model_dir: Path) -> Judge:
    return Judge(model_dir)


@pytest.fixture
def judge(_oracle: Judge, record_property: Callable[[str, object], None]) -> Iterator[Judge]:
    """The ties that it lets pass are reported with the test."""
    before = _oracle.num_ties
    yield _oracle
    record_property(TIES, _oracle.num_ties - before)


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Printed, and judged, when the module's tests are over."""
    measured = Figures(request.module.__name__.rpartition("test_")[2])
    yield measured
    measured.keep()
    assert not measured.missed(), f"targets missed by more than {SLACK:g} times"


@pytest.fixture(scope="module", params=SCALES)
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, figures: Figures
) -> Iterator[Scene]:
    """Of one module of tests; each leaves it as it found it."""
    scale: Scale = request.param
    with set_up(scale, tmp_path_factory.mktemp("run"), figures) as made:
        yield made
