"""GGUF's blocks as codes, scales and offsets (`kernels.quantized`), bit by bit what they say.

A row of a quantized tensor is a run of blocks, of 32 weights or of 256 with finer groups inside
(the K formats). Layouts: ggml's `ggml-common.h`; the package gguf dequantizes the same blocks, and
the tests hold this against it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Format

from kernels.quantized import QuantizedMatrix, packed

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

_GROUP = 32


def has_codes(kind: Format) -> bool:
    """Whether `read_blocks` knows this format."""
    return kind in _READERS


def read_blocks(data: Bytes, kind: Format, num_rows: int) -> QuantizedMatrix | None:
    """The matrix in these blocks; None for a format that has no codes of its own here.

    Args:
        data: the tensor's bytes.
        kind: GGUF's format.
        num_rows: rows of the matrix.
    """
    reader = _READERS.get(kind)
    if reader is None:
        return None
    with np.errstate(all="ignore"):  # whatever the bytes are, they are numbers
        return reader(data.reshape(num_rows, -1))


def _halves(blocks: Bytes) -> Floats:
    """The float16 at the beginning of each block, [rows, blocks]."""
    return blocks[..., :2].copy().view(np.float16)[..., 0]


def _nibbles(values: Bytes) -> Bytes:
    """Low halves of a run of bytes, then the high ones."""
    return np.concatenate((values & 15, values >> 4), axis=-1)


def _matrix(
    codes: npt.NDArray[Any], bits: int, scale: Floats, offset: Floats | None = None
) -> QuantizedMatrix:
    """Codes [rows, ..., weights of a group]; scales [rows, ...]."""
    rows = len(codes)
    flat = torch.from_numpy(
        np.ascontiguousarray(codes.reshape(rows, -1), np.uint8 if bits == 4 else np.int8)
    )
    return QuantizedMatrix(
        packed(flat) if bits == 4 else flat,
        _column(scale, rows),
        None if offset is None else _column(offset, rows),
    )


def _column(values: Floats, num_rows: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.reshape(num_rows, -1)))


def _q4_0(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 18)
    return _matrix(_nibbles(blocks[..., 2:]), 4, _halves(blocks))


def _q4_1(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 20)
    return _matrix(_nibbles(blocks[..., 4:]), 4, _halves(blocks), offset=_halves(blocks[..., 2:]))


def _with_fifth_bits(nibbles: Bytes, bits: Bytes) -> Bytes:
    """Codes of five bits: [rows, blocks, 32], the fifth of each from four bytes."""
    high = np.unpackbits(bits, axis=-1, bitorder="little")
    return nibbles | np.left_shift(high, 4, dtype=np.uint8)


def _q5_0(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 22)
    codes = _with_fifth_bits(_nibbles(blocks[..., 6:]), blocks[..., 2:6])
    return _matrix(codes.view(np.int8) - 16, 8, _halves(blocks))


def _q5_1(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 24)
    codes = _with_fifth_bits(_nibbles(blocks[..., 8:]), blocks[..., 4:8])
    return _matrix(codes, 8, _halves(blocks), offset=_halves(blocks[..., 2:]))


def _q8_0(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 34)
    return _matrix(blocks[..., 2:].view(np.int8), 8, _halves(blocks))


def _six_bit_pairs(packed_scales: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minimums of six bits each, of twelve bytes."""
    low, mid, high = (packed_scales[..., at : at + 4] for at in (0, 4, 8))
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=-1)
    minimums = np.concatenate((mid & 63, (high >> 4) | (mid >> 6) << 4), axis=-1)
    return scales, minimums


def _affine_groups(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and offset of each group of 32 of a Q4_K or Q5_K block, float32."""
    scales, minimums = _six_bit_pairs(blocks[..., 4:16])
    scale = _halves(blocks).astype(np.float32)[..., None] * scales.astype(np.float32)
    minimum = _halves(blocks[..., 2:]).astype(np.float32)[..., None] * minimums.astype(np.float32)
    return scale, -minimum


def _runs_of_nibbles(values: Bytes) -> Bytes:
    """Eight groups of 32: of each 32 bytes the low halves, then the high ones."""
    runs = values.reshape(*values.shape[:-1], 4, _GROUP)
    return _nibbles(runs).reshape(*values.shape[:-1], 8, _GROUP)


def _q4_k(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 144)
    scale, offset = _affine_groups(blocks)
    return _matrix(_runs_of_nibbles(blocks[..., 16:]), 4, scale, offset=offset)


def _q5_k(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 176)
    scale, offset = _affine_groups(blocks)
    high = np.unpackbits(blocks[..., 16:48, None], axis=-1, bitorder="little").swapaxes(-1, -2)
    return _matrix(_runs_of_nibbles(blocks[..., 48:]) | high << 4, 8, scale, offset=offset)


def _q6_k(rows: Bytes) -> QuantizedMatrix:
    blocks = rows.reshape(len(rows), -1, 210)
    low = blocks[..., :128].reshape(*blocks.shape[:-1], 2, 64)
    low = np.concatenate((low & 15, low >> 4), axis=-1)
    pairs = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, _GROUP)
    high = (pairs >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(low.shape)
    scales = blocks[..., 192:208].view(np.int8).astype(np.float32)
    scale = blocks[..., 208:].copy().view(np.float16).astype(np.float32) * scales
    return _matrix((low | high << 4).view(np.int8) - 32, 8, scale)


_READERS: Mapping[Format, Callable[[Bytes], QuantizedMatrix]] = {
    Format.Q4_0: _q4_0,
    Format.Q4_1: _q4_1,
    Format.Q5_0: _q5_0,
    Format.Q5_1: _q5_1,
    Format.Q8_0: _q8_0,
    Format.Q4_K: _q4_k,
    Format.Q5_K: _q5_k,
    Format.Q6_K: _q6_k,
}
