"""The model that each test of this folder is run with."""

import pytest

from tests.worker.models.variants import VARIANTS, Case, make_case


@pytest.fixture(scope="module", params=list(VARIANTS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One variant after the other."""
    return make_case(request.param, tmp_path_factory.mktemp(request.param))
