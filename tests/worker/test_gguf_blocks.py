"""GGUF's blocks as codes say what the package gguf makes of them, bit by bit."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Format
from gguf.quants import dequantize

from kernels.quantized import QuantizedMatrix, dense, packed, quantize, stacked
from worker.gguf_blocks import read_blocks
from worker.models.weights import held_tensors

ROWS, COLUMNS = 5, 768
FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 numbers of a block are; else only at its beginning."""


def blocks(name: str) -> np.ndarray:
    """Random codes under scales that are numbers."""
    dice = np.random.default_rng(len(name))
    weights, size = GGML_QUANT_SIZES[Format[name]]
    data = dice.integers(0, 256, (ROWS, COLUMNS // weights, size), np.uint8)
    for at in HALVES.get(name, (0,)):
        scale = dice.normal(0, 0.01, data.shape[:2]).astype(np.float16)
        data[..., at : at + 2] = scale[..., None].view(np.uint8)
    return data.reshape(ROWS, -1)


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_is_read(name: str) -> None:
    data = blocks(name)
    matrix = read_blocks(data, Format[name], ROWS)
    assert matrix is not None
    assert matrix.shape == (ROWS, COLUMNS)
    assert matrix.bits == (4 if name.startswith("Q4") else 8)
    assert matrix.group_size == (16 if name == "Q6_K" else 32)
    expected = torch.from_numpy(dequantize(data, Format[name]))
    assert torch.equal(matrix.dequantized(), expected)
    index = torch.tensor([3, 0, 3])
    assert torch.equal(matrix.rows(index).dequantized(), expected[index])


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_the_bytes_are(name: str) -> None:
    data = np.full_like(blocks(name), 0x7C)  # scales are infinite, or not numbers
    matrix = read_blocks(data, Format[name], ROWS)
    assert matrix is not None
    assert not matrix.dequantized().isfinite().all()


def test_other_formats_have_no_codes() -> None:
    assert read_blocks(np.zeros((2, 4), np.uint8), Format.F16, 2) is None


def test_matrices_of_a_kind_stand_above_one_another() -> None:
    parts = [read_blocks(blocks("Q4_1"), Format.Q4_1, ROWS) for _ in range(2)]
    first, second = (part for part in parts if part is not None)
    other = read_blocks(blocks("Q8_0"), Format.Q8_0, ROWS)
    assert other is not None
    floats = torch.randn(2, COLUMNS)
    matrices = (first, second.rows(torch.tensor([1])), other, other, floats, floats)
    together = stacked(matrices)
    assert [len(dense(part)) for part in together] == [ROWS + 1, 2 * ROWS, 4]
    assert torch.equal(
        torch.cat([dense(part) for part in together]),
        torch.cat([dense(matrix) for matrix in matrices]),
    )


@pytest.mark.parametrize(("bits", "step"), [(8, 1 / 127), (4, 2 / 15)])
def test_the_nearest_codes(bits: int, step: float) -> None:
    matrix = torch.rand(6, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    matrix[2] = 0
    matrix[3] = 0.25
    quantized = quantize(matrix, bits, 32)
    assert quantized.bits == bits
    error = (quantized.dequantized() - matrix).abs().reshape(6, 2, 32)
    assert (error.amax(-1) <= quantized.scale / 2 + 1e-7).all()
    assert (quantized.scale <= step + 1e-7).all()
    assert torch.equal(quantized.dequantized()[2], matrix[2])


def test_the_even_column_is_in_the_low_half() -> None:
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    matrix = QuantizedMatrix(packed(codes), torch.ones(1, 1))
    assert matrix.codes.tolist() == [[0x21, 0x0F]]
    assert torch.equal(matrix.dequantized(), codes.float() - 8)
    assert sum(tensor.nbytes for tensor in held_tensors(matrix)) == 2 + 4
