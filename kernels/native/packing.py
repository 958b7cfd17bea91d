"""Matrices as the kernels read them: in panels of sixteen rows, see linear.h."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.native import library
from kernels.quantized import Matrix, QuantizedMatrix, stacked

LAYOUT = 1
"""Of what is packed here of the same matrices, and of the codes that `kernels.quantized` makes:
another number, other bytes. Files of packed matrices outlive processes, and carry it."""

LANES = 16
SPAN = 32
"""Columns of activations that share a scale; so do no more columns of a matrix."""

_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_KINDS_OF_CODES = {4: 3, 8: 4}


@dataclass(frozen=True)
class PackedMatrix:
    """One matrix in panels; rows that fill up the last one are zeros.

    Attributes:
        shape: rows and columns.
        kind: `Kind` of linear.h.
        values: of floats [panels, columns, 16]; of codes [panels, words, 16] int32.
        group_size: columns that share a scale; 0 for floats.
        scales: [panels, groups, 16] float32 or float16; None for floats.
        offsets: likewise; None for none.
    """

    shape: tuple[int, int]
    kind: int
    values: torch.Tensor
    group_size: int = 0
    scales: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    def described(self) -> library.Matrix:
        """For the kernels; it points into these tensors."""
        is_half = self.scales is not None and self.scales.dtype == torch.float16
        rows, columns = self.shape
        return library.Matrix(
            rows,
            columns,
            self.kind,
            self.group_size,
            is_half,
            self.values.data_ptr(),
            None if self.scales is None else self.scales.data_ptr(),
            None if self.offsets is None else self.offsets.data_ptr(),
        )


@dataclass(frozen=True)
class PackedLinear:
    """The matrices of one linear map, one above the other.

    Attributes:
        parts: from top to bottom; neighbours are of different kinds.
    """

    parts: tuple[PackedMatrix, ...]

    @classmethod
    def of(cls, matrices: Sequence[Matrix]) -> "PackedLinear":
        """A copy in panels; neighbours of one kind become one matrix."""
        return cls(tuple(pack(matrix) for matrix in stacked(matrices)))


def pack(matrix: Matrix) -> PackedMatrix:
    """A copy in panels. Codes whose groups the kernels do not take become floats, and floats whose
    last bits say nothing are kept in sixteen."""
    if isinstance(matrix, QuantizedMatrix):
        if matrix.shape[1] % SPAN == 0 and matrix.group_size in (LANES, *_groups(matrix)):
            return _pack_codes(matrix)
        matrix = matrix.dequantized()
    rows, columns = matrix.shape
    short = _shortened(matrix)
    return PackedMatrix((rows, columns), _KINDS[short.dtype], _panels(short))


def _groups(matrix: QuantizedMatrix) -> range:
    """The sizes that are whole spans."""
    return range(SPAN, matrix.shape[1] + 1, SPAN)


def _shortened(matrix: torch.Tensor) -> torch.Tensor:
    """The same values in sixteen bits, if they were stored so in the checkpoint."""
    if matrix.dtype != torch.float32 or matrix.is_meta:
        return matrix
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal((short := matrix.to(dtype)).float(), matrix):
            return short
    return matrix


def _pack_codes(matrix: QuantizedMatrix) -> PackedMatrix:
    scale, offset = matrix.scale, matrix.offset
    if matrix.zero:
        offset = scale * -matrix.zero
    if offset is not None and offset.dtype != scale.dtype:
        scale, offset = scale.float(), offset.float()
    words = _words_of_four(matrix.codes) if matrix.bits == 4 else matrix.codes.view(torch.int32)
    repeats = max(1, matrix.group_size // SPAN)
    return PackedMatrix(
        matrix.shape,
        _KINDS_OF_CODES[matrix.bits],
        _panels(words),
        min(matrix.group_size, SPAN),
        _panels(scale.repeat_interleave(repeats, 1)),
        None if offset is None else _panels(offset.repeat_interleave(repeats, 1)),
    )


def _words_of_four(codes: torch.Tensor) -> torch.Tensor:
    """[rows, columns / 2] uint8, even columns in the low bits, to [rows, columns / 8] int32: bytes
    of the first four columns, the last four above them."""
    each = torch.stack((codes & 15, codes >> 4), -1).view(len(codes), -1, 2, 4)
    return (each[:, :, 0] | each[:, :, 1] << 4).view(len(codes), -1).view(torch.int32)


def _panels(rows: torch.Tensor) -> torch.Tensor:
    """[rows, n] to [panels, n, 16]."""
    missing = -rows.shape[0] % LANES
    if missing:
        rows = torch.cat((rows, rows.new_zeros(missing, rows.shape[1])))
    return rows.reshape(-1, LANES, rows.shape[1]).transpose(1, 2).contiguous()
