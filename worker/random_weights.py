"""Random weights for a model of which only config.json is there: for benchmarks.

Time and memory are those of the real weights, and activations stay finite in every number format;
the text means nothing. A tensor depends on its name and the seed alone, so that every rank, and
every run, holds parts of the same model.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

_SEED = 0


@dataclass(frozen=True)
class RandomWeights:
    """Stands in for a `worker.checkpoint.Checkpoint`.

    Attributes:
        shapes: of every tensor that the model asks for, by name.
        seed: another seed, another model.
    """

    shapes: Mapping[str, tuple[int, ...]]
    seed: int = _SEED

    def read(
        self, name: str, part: tuple[slice, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """One tensor, or the part of it with one slice per axis.

        Matrices are uniform and keep the variance of what they are applied to. Norm weights are
        one, which keeps everything; families that store them less one (Gemma) double it instead.
        Biases are zero.
        """
        tensor = torch.empty(self.shapes[name], dtype=dtype, device=device)
        if tensor.dim() == 1:
            return tensor.fill_(0.0 if name.endswith(".bias") else 1.0)[part].clone()
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=7).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
        bound = math.sqrt(3 / tensor.shape[1])
        tensor.uniform_(-bound, bound, generator=generator)
        return tensor[part].clone() if part else tensor

    def read_codes(self, name: str) -> None:
        """It has floats only."""

    def outline(self, name: str) -> None:
        """It has floats only."""

    def update_digest(self, digest: "hashlib.blake2b") -> None:
        """Feeds what tells these weights from others of the same configuration."""
        digest.update(f"random {self.seed}".encode())
