"""How layers get their weights: by name and shape, of each tensor the part that this rank keeps.

A layer states name and shape where it reads; the list of what a checkpoint must hold is what the
layers ask for when they are built without data (`tensor_shapes`), so the two cannot differ.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Protocol

import torch

from kernels.linear import pack_parts
from kernels.native.packing import PackedLinear
from kernels.quantized import Matrix, dense
from worker.parallel import ALONE, Group

# One slice per axis of a tensor, or none at all for the whole of it.
Part = tuple[slice, ...]
_ALL = slice(None)


class ReadTensor(Protocol):
    """Gives part of one tensor of the checkpoint, in the wanted type and on the device."""

    def __call__(self, name: str, shape: tuple[int, ...], part: Part) -> Matrix:
        """The part; of a matrix as a whole perhaps its codes.

        Args:
            name: the checkpoint's.
            shape: of the whole tensor.
            part: which part of it.
        """
        ...


Pack = Callable[[Sequence[Matrix]], torch.Tensor | PackedLinear]
"""Lays out the matrices of a linear map, which are one above the other."""


@dataclass(frozen=True)
class Weights:
    """The tensors under one prefix of the checkpoint's names.

    Attributes:
        read: gives tensors by their full name.
        group: the ranks that share the model.
        prefix: "" or ends with a dot.
        pack: lays out the matrices of a linear map, which are one above the other.
        packs_embedding: whether an embedding that is not the head's, too, is laid out so.
    """

    read: ReadTensor
    group: Group = ALONE
    prefix: str = ""
    pack: Pack = pack_parts
    packs_embedding: bool = False

    def under(self, name: str) -> "Weights":
        """The tensors whose names go on with this one and a dot."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def vector(self, name: str, size: int, span: slice = _ALL) -> torch.Tensor:
        """[size], or the span of it."""
        return dense(self.read(self.prefix + name, (size,), () if span == _ALL else (span,)))

    def matrix(
        self,
        name: str,
        num_rows: int,
        num_columns: int,
        *,
        rows: slice = _ALL,
        columns: slice = _ALL,
    ) -> Matrix:
        """[num_rows, num_columns], or the spans of them."""
        part = () if rows == columns == _ALL else (rows, columns)
        return self.read(self.prefix + name, (num_rows, num_columns), part)


def tensor_shapes(build: Callable[[Weights], object]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that `build` reads; it is given tensors without data."""
    shapes: dict[str, tuple[int, ...]] = {}

    def read(name: str, shape: tuple[int, ...], part: Part) -> torch.Tensor:
        shapes[name] = shape
        return torch.empty(shape, device="meta")[part]

    build(Weights(read))
    return shapes


def held_tensors(holder: object) -> Iterator[torch.Tensor]:
    """Every tensor in a tree of dataclasses and tuples."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, tuple):
        for item in holder:
            yield from held_tensors(item)
    elif is_dataclass(holder):
        for field in fields(holder):
            yield from held_tensors(getattr(holder, field.name))
