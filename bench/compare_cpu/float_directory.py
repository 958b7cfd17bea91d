"""Writes a model whose matrices are in codes as floats, which peers can read and export.

python -m bench.compare_cpu.float_directory smollm2 DIRECTORY
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from quire.models import resolve


def main(
    model: Annotated[str, typer.Argument(help="As `quire serve` takes it.")],
    directory: Annotated[Path, typer.Argument(help="Written, with its tokenizer.")],
) -> None:
    """Writes it."""
    from bench.float_model import float_model

    source = resolve(model, print).path
    float_model(source).save_pretrained(directory)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, directory)


if __name__ == "__main__":
    typer.run(main)
