"""A model directory whose files say nonsense: a message, and no traceback, no gigabytes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ModelError
from gateway.model import load_model
from tests.gateway import tiny_model

NONSENSE: list[Any] = [
    *(None, "x", -1, 0, 1, 2.5, [], {}, [1], {"a": 1}, [{"a": 1}], True, 1 << 40, 1e308, "1"),
]
FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("models") / "whole")


@pytest.mark.parametrize("name", FILES)
def test_nonsense_in_any_field_is_refused_or_harmless(
    whole: Path, tmp_path: Path, name: str
) -> None:
    said = json.loads((whole / name).read_text()) if (whole / name).is_file() else {}
    more = ("eos_token_id", "chat_template", "temperature", "vocab_size", "eos_token")
    directory = tmp_path / "model"
    shutil.copytree(whole, directory)
    for field in {*said, *more}:
        for value in NONSENSE:
            (directory / name).write_text(json.dumps(said | {field: value}))
            load_or_refuse(directory)
    for value in NONSENSE:
        (directory / name).write_text(json.dumps(value))
        load_or_refuse(directory)
    text = json.dumps(said)
    for end in (0, 1, len(text) // 2, len(text) - 1):
        (directory / name).write_text(text[:end])
        with pytest.raises(ModelError):
            load_model(directory, None)


def load_or_refuse(directory: Path) -> None:
    try:
        load_model(directory, None)
    except ModelError as error:
        assert str(error)  # noqa: PT017 - either is fine


def test_a_vocabulary_that_fits_nowhere_is_refused_by_its_size(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(whole, directory)
    said = json.loads((whole / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(said | {"vocab_size": 1 << 40}))
    with pytest.raises(ModelError, match="vocab_size is 1099511627776; it must be 1 to 16777216"):
        load_model(directory, None)
