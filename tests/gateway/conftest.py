"""The tiny model, loaded once."""

from pathlib import Path

import pytest

from gateway.model import Model, load_model
from tests.gateway import tiny_model

TEMPLATES = Path(__file__).parent / "templates"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a model comes in."""
    return tiny_model.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(model_dir: Path) -> Model:
    """The model in it."""
    return load_model(model_dir)


@pytest.fixture(scope="session")
def hermes(model_dir: Path) -> Model:
    """The same with a template that knows tools and thoughts."""
    return load_model(model_dir, chat_template=TEMPLATES / "hermes.jinja")
