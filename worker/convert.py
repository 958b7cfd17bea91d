"""`python -m worker.convert SOURCE.gguf DEST_DIR`: a GGUF file becomes a model directory.

It is laid out as Hugging Face's are, with quantized matrices in codes, which only Quire reads.
The directory appears whole or not at all: it is written beside its place and renamed. A directory
that is already there is left alone.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from worker.gguf_model import ConvertError, GGUFModel, StoredTensor
from worker.gguf_tokenizer import build_tokenizer, tokenizer_config

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_NAMES_OF_FORMATS = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
}
# Told (bytes written, bytes in all) as the weights are written.
Report = Callable[[int, int], None]


def convert(source: Path, destination: Path, report: Report) -> None:
    """Writes `destination` from the GGUF file `source`; does nothing where it is complete.

    Raises:
        ConvertError: the source cannot be converted, or the destination is something else.
        OSError: the disk is full or not writable.
    """
    if is_converted(destination):
        return
    if destination.exists():
        raise ConvertError(f"{destination} exists and is not a converted model")
    model = GGUFModel(source)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(destination)
    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_all(model, partial, report)
        try:
            partial.rename(destination)
        except OSError:
            # Another converter was first, with the same result.
            if not is_converted(destination):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_converted(directory: Path) -> bool:
    """Whether the directory holds every file of a converted model."""
    return all((directory / name).is_file() for name in FILES)


def _write_all(model: GGUFModel, directory: Path, report: Report) -> None:
    config = model.config()
    tokenizer = build_tokenizer(model)
    _write_json(directory / "config.json", config)
    named = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(directory / "generation_config.json", {name: config[name] for name in named})
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(model))
    _write_safetensors(directory / "model.safetensors", model.tensors(), report)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_safetensors(path: Path, tensors: list[StoredTensor], report: Report) -> None:
    """Streams the tensors to the file: one at a time is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for tensor in tensors:
        for name, (dtype, shape) in tensor.outline.items():
            start, total = total, total + dtype.itemsize * math.prod(shape)
            kind = _NAMES_OF_FORMATS[dtype]
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, total]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for array in tensor.read().values():
                written += file.write(array.data)
            report(written, total)
        file.flush()
        os.fsync(file.fileno())


def _remove_abandoned(destination: Path) -> None:
    """Deletes what converters that were killed left behind."""
    for partial in destination.parent.glob(f"{destination.name}.partial-*"):
        pid = partial.name.rpartition("-")[2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _plain_report() -> Report:
    """One line on stderr per quarter, for logs."""
    quarters_told = 0

    def report(written: int, total: int) -> None:
        nonlocal quarters_told
        quarters = 4 * written // total
        if quarters > quarters_told:
            quarters_told = quarters
            print(f"converting: {25 * quarters} % of {total / 1e6:.0f} MB", file=sys.stderr)

    return report


def _convert_with_progress(source: Path, destination: Path) -> None:
    console = Console(stderr=True)
    if not console.is_terminal:
        convert(source, destination, _plain_report())
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"Converting {source.name}", total=None)
        convert(
            source,
            destination,
            lambda written, total: progress.update(task, completed=written, total=total),
        )


def main(
    source: Annotated[Path, typer.Argument(metavar="SOURCE.gguf", help="The GGUF file to read.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DEST_DIR", help="The directory to write; kept if complete.")
    ],
) -> None:
    """Convert a GGUF file of the llama architecture into a model directory, once."""
    try:
        _convert_with_progress(source, destination)
    except (ConvertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
