"""The default model, converted once per machine."""

from pathlib import Path

import pytest

from quire.models import resolve


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return resolve("smollm2", lambda message: None).path
