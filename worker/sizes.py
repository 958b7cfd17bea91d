"""How large a worker's steps may get: what the command line says and the ledger counts with."""

from dataclasses import dataclass


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


def default_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then by 8 to 256, then by 64; the last is `max_num_seqs` itself.

    Padding wastes at most seven rows where a step is short, and there are few steps to capture.
    """
    sizes = (1, 2, 4, *range(8, 257, 8), *range(320, max_num_seqs, 64))
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)
