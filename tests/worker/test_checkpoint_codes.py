"""Codes, scales and offsets that do not fit together are refused before a weight is read."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from worker.checkpoint import Checkpoint, CheckpointError
from worker.models.weights import held_tensors

CODES = torch.zeros(4, 64, dtype=torch.int8)
SCALE = torch.ones(4, 2)


def write(directory: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    apart = {name: tensor.clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(apart, directory / "model.safetensors")
    return Checkpoint.open(directory)


def test_what_fits_is_one_matrix(tmp_path: Path) -> None:
    four = {"b.codes": CODES.to(torch.uint8), "b.scale": SCALE.half(), "b.offset": SCALE}
    checkpoint = write(tmp_path, {"a.codes": CODES, "a.scale": SCALE, "c": SCALE, **four})
    checkpoint.check_shapes({"a": (4, 64), "b": (4, 128), "c": (4, 2)}, set())
    with pytest.raises(CheckpointError, match=r"tensor b has shape \[4, 128\]; .* \[4, 64\]"):
        checkpoint.check_shapes({"a": (4, 64), "b": (4, 64), "c": (4, 2)}, set())
    under = checkpoint.under("model.")
    matrix = under.read_codes("model.b")
    assert matrix is not None
    assert torch.equal(matrix.dequantized(), torch.ones(4, 128))
    assert under.read_codes("model.c") is None
    part = under.read("model.b", (slice(1, 3), slice(0, 5)), torch.float32, torch.device("cpu"))
    assert torch.equal(part, torch.ones(2, 5))
    outline = under.outline("model.b")
    assert outline is not None
    sizes = [sum(tensor.nbytes for tensor in held_tensors(each)) for each in (outline, matrix)]
    assert (outline.shape, sizes[0]) == (matrix.shape, sizes[1])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"a.codes": CODES, "a.scale": SCALE, "a": SCALE},
            "tensor a is there twice: in floats and in codes",
        ),
        ({"a.codes": CODES}, "tensor a.codes has no a.scale"),
        ({"a.codes": SCALE, "a.scale": SCALE}, "tensor a.codes is not a matrix of codes"),
        ({"a.codes": CODES[0], "a.scale": SCALE}, "tensor a.codes is not a matrix of codes"),
        ({"a.codes": CODES, "a.scale": SCALE[:3]}, "tensor a.scale does not fit the codes, 4 rows"),
        ({"a.codes": CODES, "a.scale": CODES}, "tensor a.scale does not fit the codes, 4 rows"),
        (
            {"a.codes": CODES, "a.scale": SCALE, "a.offset": SCALE[:, :1]},
            "tensor a.offset does not fit the codes, 4 rows",
        ),
        (
            {"a.codes": CODES, "a.scale": torch.ones(4, 3)},
            "tensor a.scale has 3 groups; 64 columns do not divide into them",
        ),
        (
            {"a.codes": CODES, "a.scale": torch.ones(4, 0)},
            "tensor a.scale has 0 groups; 64 columns do not divide into them",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        write(tmp_path, tensors)


@pytest.mark.parametrize("shape", [[4, 2.0], [4, -2], [4, True], [-4, -2]])
def test_sizes_are_whole_numbers(tmp_path: Path, shape: list[object]) -> None:
    write(tmp_path, {"a.codes": CODES, "a.scale": SCALE})
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a.scale"]["shape"] = shape
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CheckpointError, match=r"has a damaged header: .*a\.scale"):
        Checkpoint.open(tmp_path)
