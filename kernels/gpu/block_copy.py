"""Copies whole KV blocks, in all layers, by one launch.

    storage[l, destinations[i]] ← storage[l, sources[i]]     for every layer l and pair i

Shapes: storage is ``[layers, num_blocks, ...]``, a layer's keys and values counting as two; sources
and destinations are ``[num_pairs]``. A block is moved as 32-bit words: its number format does not
matter. Programs are (pair, layer, part of a block). No block is a destination twice, or a source
and a destination at once: programs run in any order.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.checks import require, require_dtype

WIDTH = 2048
NUM_WARPS = 4


@triton.jit
def copy_blocks_kernel(
    storage, sources, destinations, layer_stride, WORDS: tl.constexpr, WIDTH: tl.constexpr
):
    """One part of one block of one layer."""
    pair = tl.program_id(0)
    source = tl.load(sources + pair).to(tl.int64) * WORDS
    destination = tl.load(destinations + pair).to(tl.int64) * WORDS
    layer = storage + tl.program_id(1).to(tl.int64) * layer_stride
    at = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = at < WORDS
    tl.store(layer + destination + at, tl.load(layer + source + at, inside), inside)


def copy_blocks(storage: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """`kernels.reference.copy_blocks`.

    Raises:
        ValueError: a shape, type or device is not what it must be.
    """
    num_layers, num_blocks = storage.shape[:2]
    num_pairs = sources.shape[0]
    require("storage", storage, storage, storage.shape)
    for name, blocks in (("sources", sources), ("destinations", destinations)):
        require(name, blocks, storage, (num_pairs,))
        require_dtype(name, blocks, torch.int32, torch.int64)
    block_bytes = storage[0, 0].numel() * storage.element_size()
    if block_bytes % 4:
        raise ValueError(f"storage has blocks of {block_bytes} bytes; it must be a multiple of 4")
    words = block_bytes // 4
    if num_pairs:
        copy_blocks_kernel[(num_pairs, num_layers, triton.cdiv(words, WIDTH))](
            storage.view(-1).view(torch.int32),
            sources,
            destinations,
            num_blocks * words,
            WORDS=words,
            WIDTH=WIDTH,
            num_warps=NUM_WARPS,
        )
