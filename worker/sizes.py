"""How large a worker's steps may get: what the command line says and the ledger counts with."""

from dataclasses import dataclass

import torch

MAX_STEP_TOKENS = 2048
_CPU_STEP_TOKENS = 256
"""A CPU computes no more tokens a second in larger steps (`bench/step_budget.py`), and every
running sequence waits for a step's end."""


@dataclass(frozen=True)
class Sizes:
    """Limits of a step.

    Attributes:
        block_size: tokens per block.
        max_num_seqs: slots.
        max_num_batched_tokens: tokens of a step.
        graph_buckets: numbers of decode rows that get a captured step on a device that can replay
            one; empty: every step is launched kernel by kernel.
    """

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    graph_buckets: tuple[int, ...] = ()


def default_buckets(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then by 8 to 256, then by 64; the last is the most rows that decode at once.

    Each needs a slot and a token. Padding wastes at most seven rows where a step is short, and
    there are few steps to capture.
    """
    most = min(max_num_seqs, max_num_batched_tokens)
    sizes = (1, 2, 4, *range(8, 257, 8), *range(320, most, 64))
    return (*(size for size in sizes if size < most), most)


def default_step_tokens(device: torch.device, max_num_seqs: int) -> int:
    """Tokens of a step of a model that generates: enough for one of every slot, at least."""
    few = _CPU_STEP_TOKENS if device.type == "cpu" else MAX_STEP_TOKENS
    return max(few, min(max_num_seqs, MAX_STEP_TOKENS))
