"""What the sampler of `kernels.sampling` is told beside the logits."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DrawParams:
    """Steps 5 to 9 of `kernels.sampling` for each row, all on the device of the logits.

    Attributes:
        temperature: [rows] float32, above 0.
        top_k: [rows] int64; 0 keeps all.
        top_p: [rows] float32, above 0, at most 1; 1 keeps all.
        min_p: [rows] float32, 0 to 1; 0 keeps all.
        seed: [rows] int64, bit pattern of the unsigned seed.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor


@dataclass(frozen=True)
class PenaltyTables:
    """Which tokens sequences have seen, by slot.

    Attributes:
        in_prompt: [slots, vocab_size] bool.
        output_count: [slots, vocab_size] int32, occurrences in the output.
    """

    in_prompt: torch.Tensor
    output_count: torch.Tensor

    @classmethod
    def empty(cls, num_slots: int, vocab_size: int) -> "PenaltyTables":
        """Tables of sequences that have seen nothing, on the host."""
        shape = (num_slots, vocab_size)
        return cls(
            in_prompt=torch.zeros(shape, dtype=torch.bool),
            output_count=torch.zeros(shape, dtype=torch.int32),
        )

    @staticmethod
    def num_bytes(num_slots: int, vocab_size: int) -> int:
        """What `empty` takes."""
        return num_slots * vocab_size * (torch.bool.itemsize + torch.int32.itemsize)
