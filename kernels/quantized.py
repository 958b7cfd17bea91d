"""Matrices kept as small whole numbers: a code for each weight, a scale for each group of columns.

    w[r, c] = scale[r, g] · (code[r, c] − zero) + offset[r, g],    g = c // group_size

This is how GGUF keeps weights (its blocks are groups of a row), with scales and offsets apart from
the codes, so that each of the three is one array that a kernel can read in runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix in codes.

    Attributes:
        codes: of eight bits, [rows, columns] int8; or of four, [rows, columns / 2] uint8, the even
            column in the low half of a byte.
        scale: [rows, groups] float32 or float16.
        offset: [rows, groups] float32 or float16; None for nothing.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None

    @property
    def bits(self) -> int:
        """Of a code, 4 or 8."""
        return 4 if self.codes.dtype == torch.uint8 else 8

    @property
    def is_meta(self) -> bool:
        """Whether it has its sizes alone, and no data; as of a tensor."""
        return self.codes.is_meta

    @property
    def zero(self) -> int:
        """The code that stands for the offset. Codes of four bits are not signed, so that without
        an offset half of them are for what is below zero."""
        return 8 if self.bits == 4 and self.offset is None else 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, width = self.codes.shape
        return rows, width * 8 // self.bits

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def is_like(self, other: "QuantizedMatrix") -> bool:
        """Whether both have the same kind of codes, so that one can stand above the other."""
        mine, its = (
            (one.bits, one.shape[1], one.group_size, one.offset is None) for one in (self, other)
        )
        return mine == its

    def rows(self, index: torch.Tensor) -> "QuantizedMatrix":
        """Some rows, in the order of the index."""
        offset = None if self.offset is None else self.offset[index]
        return replace(self, codes=self.codes[index], scale=self.scale[index], offset=offset)

    def part(self, part: tuple[slice, ...]) -> torch.Tensor:
        """What `dequantized` has in one slice per axis, or all of it, and no more in memory."""
        values = self.dequantized()
        return values[part].clone() if part else values

    def dequantized(self) -> torch.Tensor:
        """[rows, columns] float32."""
        rows, columns = self.shape
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1)
        groups = codes.reshape(rows, -1, self.group_size).float()
        if self.zero:
            groups -= self.zero
        groups *= self.scale.float()[:, :, None]
        if self.offset is not None:
            groups += self.offset.float()[:, :, None]
        return groups.view(rows, columns)


Matrix = torch.Tensor | QuantizedMatrix
"""In floats or in codes."""


def stacked(matrices: Sequence[Matrix]) -> list[Matrix]:
    """Matrices of as many columns, from top to bottom; neighbours of one kind become one."""
    parts = list(matrices[:1])
    for matrix in matrices[1:]:
        joined = _joined(parts[-1], matrix)
        if joined is None:
            parts.append(matrix)
        else:
            parts[-1] = joined
    return parts


def dense(matrix: Matrix) -> torch.Tensor:
    """[rows, columns] of floats."""
    return matrix if isinstance(matrix, torch.Tensor) else matrix.dequantized()


def _joined(above: Matrix, below: Matrix) -> Matrix | None:
    """None if they are not of one kind."""
    if isinstance(above, torch.Tensor):
        return rows_joined((above, below)) if isinstance(below, torch.Tensor) else None
    if isinstance(below, torch.Tensor) or not above.is_like(below):
        return None
    offset = None
    if above.offset is not None and below.offset is not None:
        offset = rows_joined((above.offset, below.offset))
    codes, scale = (above.codes, below.codes), (above.scale, below.scale)
    return QuantizedMatrix(rows_joined(codes), rows_joined(scale), offset)


def rows_joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One above the other. Asked for this without data, torch loads its compiler, for a second."""
    first = tensors[0]
    if first.is_meta:
        return first.new_empty(sum(map(len, tensors)), *first.shape[1:])
    return torch.cat(tuple(tensors))


def quantize(matrix: torch.Tensor, bits: int, group_size: int) -> QuantizedMatrix:
    """The nearest codes, group by group, of a matrix of floats; they use the whole range from the
    least weight of the group to the greatest.

    Args:
        matrix: [rows, columns]; `group_size` divides the columns.
        bits: 4 or 8.
        group_size: columns that share a scale.
    """
    if matrix.is_meta:
        return _outline(matrix, bits, group_size)
    rows, columns = matrix.shape
    groups = matrix.float().reshape(rows, columns // group_size, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    most = 2**bits - 1
    scale = (high - low) / most
    codes = ((groups - low[:, :, None]) / _nonzero(scale)[:, :, None]).round().clamp(0, most)
    codes = codes.view(rows, columns)
    if bits == 4:
        return QuantizedMatrix(packed(codes.to(torch.uint8)), scale, offset=low)
    return QuantizedMatrix((codes - 128).to(torch.int8), scale, offset=low + 128 * scale)


def _outline(matrix: torch.Tensor, bits: int, group_size: int) -> QuantizedMatrix:
    """`quantize` without data; see `rows_joined`."""
    rows, columns = matrix.shape
    dtype = torch.uint8 if bits == 4 else torch.int8
    codes = matrix.new_empty(rows, columns * bits // 8, dtype=dtype)
    scale, offset = (
        matrix.new_empty(rows, columns // group_size, dtype=torch.float32) for _ in range(2)
    )
    return QuantizedMatrix(codes, scale, offset)


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Codes of four bits two in a byte: [rows, columns] uint8, 0 to 15, to [rows, columns / 2]."""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 1.0, scale)
