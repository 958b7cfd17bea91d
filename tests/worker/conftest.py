"""The tiny model, the fake scheduler and the free port that the worker's tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from tests.ports import free_port
from tests.worker.builders import write_tiny_llama
from tests.worker.fake_scheduler import FakeScheduler, fake_scheduler
from worker.loader import LoadedModel, load_model


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_directory: Path) -> LoadedModel:
    """The same, loaded."""
    return load_model(tiny_directory, dtype="auto", device=torch.device("cpu"))


@pytest.fixture(name="free_port")
def _free_port() -> int:
    """A TCP port on which nothing listens."""
    return free_port()


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    """One that the test plays."""
    async with fake_scheduler() as server:
        yield server
