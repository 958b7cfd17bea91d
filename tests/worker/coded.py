"""Checkpoints whose matrices are in codes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from kernels.quantized import QuantizedMatrix, dense, packed, quantize
from worker.checkpoint import CODES, OFFSET, SCALE

Kind = Callable[[torch.Tensor], QuantizedMatrix]


def about_zero(matrix: torch.Tensor, bits: int) -> QuantizedMatrix:
    """Without offsets, as Q4_0 and Q8_0 have them."""
    rows, columns = matrix.shape
    groups = matrix.reshape(rows, -1, 32)
    scale = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
    codes = (groups / scale[:, :, None]).round().view(rows, columns)
    if bits == 8:
        return QuantizedMatrix(codes.to(torch.int8), scale.half())
    return QuantizedMatrix(packed((codes + 8).to(torch.uint8)), scale.half())


KINDS: dict[str, Kind] = {
    "eight bits": lambda matrix: quantize(matrix, 8, 32),
    "four bits": lambda matrix: quantize(matrix, 4, 32),
    "eight bits about zero": lambda matrix: about_zero(matrix, 8),
    "four bits about zero": lambda matrix: about_zero(matrix, 4),
    "eight bits in small groups": lambda matrix: quantize(matrix, 8, 16),
}


def code(directory: Path, destination: Path, kind_of: Callable[[str], Kind | None]) -> Path:
    """A copy of a model with matrices in codes, and `destination / "floats"` with what they say."""
    floats = destination / "floats"
    shutil.copytree(directory, destination)
    shutil.copytree(directory, floats)
    said, coded = {}, {}
    for name, tensor in safetensors.torch.load_file(directory / "model.safetensors").items():
        kind = kind_of(name) if tensor.dim() == 2 else None
        if kind is None:
            said[name] = coded[name] = tensor
            continue
        matrix = kind(tensor)
        parts = {CODES: matrix.codes, SCALE: matrix.scale, OFFSET: matrix.offset}
        coded |= {name + end: part for end, part in parts.items() if part is not None}
        said[name] = dense(matrix)
    safetensors.torch.save_file(said, floats / "model.safetensors")
    safetensors.torch.save_file(coded, destination / "model.safetensors")
    return destination
