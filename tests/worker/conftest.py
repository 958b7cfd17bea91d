"""The tiny model that the worker's tests share."""

from pathlib import Path

import pytest
import torch

from tests.worker.builders import write_tiny_llama
from worker.loader import LoadedModel, load_model


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_directory: Path) -> LoadedModel:
    """The same, loaded."""
    return load_model(tiny_directory, dtype="auto", device=torch.device("cpu"))
