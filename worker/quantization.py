"""What matrices are computed with: what the checkpoint has, floats, or codes made at load."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.quantized import QuantizedMatrix, quantize
from worker.models.fields import UnsupportedModelError
from worker.models.weights import Part

GROUP_SIZE = 32
"""Columns that share a scale, as in GGUF."""
VOCABULARY = ("embed_tokens.weight", "lm_head.weight")


class WeightSource(Protocol):
    """A checkpoint, or what stands in for one."""

    def read(self, name: str, part: Part, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """One tensor, or the part of it with one slice per axis, converted and placed."""
        ...

    def read_codes(self, name: str) -> QuantizedMatrix | None:
        """A matrix in codes, on the host; None for what is in floats."""
        ...

    def outline(self, name: str) -> QuantizedMatrix | None:
        """What `read_codes` gives, with its sizes alone, and no memory."""
        ...

    def update_digest(self, digest: "hashlib.blake2b") -> None:
        """Feeds what changes whenever the weights do."""
        ...


@dataclass(frozen=True)
class InFloats:
    """Weights whose codes count for nothing but the floats that they stand for.

    Attributes:
        source: the weights.
    """

    source: WeightSource

    def read(self, name: str, part: Part, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """`WeightSource.read`."""
        return self.source.read(name, part, dtype, device)

    def read_codes(self, name: str) -> None:
        """There are none."""

    def outline(self, name: str) -> None:
        """There is none."""

    def update_digest(self, digest: "hashlib.blake2b") -> None:
        """`WeightSource.update_digest`."""
        self.source.update_digest(digest)


@dataclass(frozen=True)
class AtLoad:
    """Weights whose matrices get codes as they are read.

    Attributes:
        source: the weights, in floats.
        shapes: of every tensor, by name.
        bits: of a code; matrices over the vocabulary have eight: four cost a small model most of
            what they cost at all.
    """

    source: WeightSource
    shapes: Mapping[str, tuple[int, ...]]
    bits: int

    def read(self, name: str, part: Part, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """`WeightSource.read`: what the codes stand for."""
        matrix = self.read_codes(name)
        if matrix is None:
            return self.source.read(name, part, dtype, device)
        return matrix.part(part).to(device=device, dtype=dtype)

    def read_codes(self, name: str) -> QuantizedMatrix | None:
        """`WeightSource.read_codes`."""
        if not self._has_groups(name):
            return None
        floats = self.source.read(name, (), torch.float32, torch.device("cpu"))
        return quantize(floats, self._bits(name), GROUP_SIZE)

    def outline(self, name: str) -> QuantizedMatrix | None:
        """`WeightSource.outline`."""
        if not self._has_groups(name):
            return None
        return quantize(torch.empty(self.shapes[name], device="meta"), self._bits(name), GROUP_SIZE)

    def _bits(self, name: str) -> int:
        return 8 if name.endswith(VOCABULARY) else self.bits

    def _has_groups(self, name: str) -> bool:
        shape = self.shapes[name]
        return len(shape) == 2 and shape[1] % GROUP_SIZE == 0

    def update_digest(self, digest: "hashlib.blake2b") -> None:
        """`WeightSource.update_digest`."""
        self.source.update_digest(digest)
        digest.update(f"codes of {self.bits} bits".encode())


def quantized_as(
    asked: str, source: WeightSource, shapes: Mapping[str, tuple[int, ...]]
) -> WeightSource:
    """The weights as --quantization wants them.

    Raises UnsupportedModelError if they shall get codes and have some.
    """
    if asked == "auto":
        return source
    if asked == "none":
        return InFloats(source)
    if kinds := _kinds(source, shapes):
        raise UnsupportedModelError(
            f"--quantization is {asked}; the matrices of this checkpoint are in codes already "
            f"({kinds}): auto, the default, keeps them, none makes floats of them"
        )
    coded = AtLoad(source, shapes, int(asked.removeprefix("int")))
    if not _kinds(coded, shapes):
        raise UnsupportedModelError(
            f"--quantization is {asked}; no matrix of this model has columns in groups of "
            f"{GROUP_SIZE}"
        )
    return coded


def _kinds(source: WeightSource, shapes: Iterable[str]) -> str:
    """For people: which codes there are; "" if there are none."""
    matrices = [matrix for name in shapes if (matrix := source.outline(name)) is not None]
    found = Counter(f"{matrix.bits} bits in groups of {matrix.group_size}" for matrix in matrices)
    return ", ".join(f"{kind}: {count}" for kind, count in found.most_common())


def describe(source: WeightSource, shapes: Iterable[str], keeps_codes: bool) -> str | None:
    """For people: what is computed with, after the name of what computes; None for floats from a
    checkpoint of floats."""
    kinds = _kinds(source, shapes)
    if not kinds:
        return None
    if keeps_codes:
        return f"with matrices in codes ({kinds}); --quantization none makes floats of them"
    return f"in floats with matrices that are kept in codes ({kinds})"
