"""Packed matrices that have their sizes alone, and no memory.

They are told from one panel that is really packed, so that nothing here knows the layout; and not
by packing what has no data: torch would load its compiler for that, which takes a second.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from kernels.native.packing import LANES, PackedLinear, PackedMatrix, pack
from kernels.quantized import Matrix, QuantizedMatrix, stacked

_OF_ALL_BITS = 1 / 3
"""No format shorter than its own has it: floats are taken to need the bits that they have."""


def outline(matrices: Sequence[Matrix]) -> PackedLinear:
    """What `PackedLinear.of` makes of matrices without data, or at most that.

    Args:
        matrices: on the device "meta", one above the other.
    """
    return PackedLinear(tuple(map(_outline, stacked(matrices))))


def without_data(linear: PackedLinear) -> PackedLinear:
    """Of the same sizes."""
    return PackedLinear(tuple(_of_panels(part, part.values.shape[0]) for part in linear.parts))


def _outline(matrix: Matrix) -> PackedMatrix:
    rows, columns = matrix.shape
    panel = pack(_one_panel(matrix))
    return replace(_of_panels(panel, -(-rows // LANES)), shape=(rows, columns))


def _one_panel(matrix: Matrix) -> Matrix:
    if isinstance(matrix, torch.Tensor):
        return torch.full((LANES, matrix.shape[1]), _OF_ALL_BITS, dtype=matrix.dtype)
    offset = None if matrix.offset is None else _zeros(matrix.offset)
    return QuantizedMatrix(_zeros(matrix.codes), _zeros(matrix.scale), offset)


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(LANES, like.shape[1], dtype=like.dtype)


def _of_panels(part: PackedMatrix, panels: int) -> PackedMatrix:
    def empty(like: torch.Tensor) -> torch.Tensor:
        return torch.empty(panels, *like.shape[1:], dtype=like.dtype, device="meta")

    return replace(
        part,
        values=empty(part.values),
        scales=None if part.scales is None else empty(part.scales),
        offsets=None if part.offsets is None else empty(part.offsets),
    )
