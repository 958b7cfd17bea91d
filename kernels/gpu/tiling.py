"""How attention is launched: sizes of its programs, from what the host knows without asking.

Only shapes decide, never lengths: a CUDA graph replays what was chosen when it was captured.
"""

from functools import cache
from typing import NamedTuple

import torch
from triton import next_power_of_2

MAX_SPLITS = 16  # a power of two


class Tiling(NamedTuple):
    """Sizes of one launch.

    Attributes:
        block_m: rows of a program's matrix products: query tokens times heads of a group.
        tile: keys and values that it folds at a time.
        num_warps: of a program.
        num_stages: tiles that are under way or in use.
    """

    block_m: int
    tile: int
    num_warps: int
    num_stages: int


class Gpu(NamedTuple):
    """What of a device decides.

    Attributes:
        num_multiprocessors: it runs so many programs at once, at least.
        tile_bytes: of keys in the query's type, so that a tile of them, one of values and the
            stages behind fit into its shared memory, and what is computed from them into its
            registers.
        num_stages: the same for every launch.
        has_float8: whether it converts from float8 (e4m3).
    """

    num_multiprocessors: int
    tile_bytes: int
    num_stages: int
    has_float8: bool = True


# Tiles of 16 KiB spill on Ampere; an AMD device has 64 KiB of shared memory.
HOPPER = Gpu(num_multiprocessors=132, tile_bytes=16 << 10, num_stages=3)
AMPERE = Gpu(num_multiprocessors=108, tile_bytes=8 << 10, num_stages=3, has_float8=False)
MI300 = Gpu(num_multiprocessors=304, tile_bytes=8 << 10, num_stages=2)
# Triton's interpreter runs one program after another: few are enough.
_INTERPRETER = HOPPER._replace(num_multiprocessors=4)


@cache
def gpu_of(device: torch.device) -> Gpu:
    """The decisive facts about a device."""
    if device.type == "cpu":
        return _INTERPRETER
    count = torch.cuda.get_device_properties(device).multi_processor_count
    if torch.version.hip:
        return MI300._replace(num_multiprocessors=count)
    capability = torch.cuda.get_device_capability(device)
    if capability[0] in (9, 10):
        return HOPPER._replace(num_multiprocessors=count)
    return AMPERE._replace(num_multiprocessors=count, has_float8=capability >= (8, 9))


def decode_tiling(gpu: Gpu, group: int, head_dim: int, dtype: torch.dtype) -> Tiling:
    """One token per row: memory is the bound, so few rows and many programs at a time."""
    return Tiling(
        block_m=max(16, next_power_of_2(group)),  # what the matrix units take at least
        tile=_tile(gpu, head_dim, dtype),
        num_warps=4,
        num_stages=gpu.num_stages,
    )


def num_splits(gpu: Gpu, num_rows: int, num_kv_heads: int) -> int:
    """Into how many parts decodes cut a context: up to two programs for each multiprocessor."""
    return min(max(2 * gpu.num_multiprocessors // (num_rows * num_kv_heads), 1), MAX_SPLITS)


def chunk_tiling(
    gpu: Gpu,
    num_tokens: int,
    num_rows: int,
    num_heads: int,
    group: int,
    head_dim: int,
    dtype: torch.dtype,
) -> Tiling:
    """Many tokens per row: the matrix units are the bound, and tall products use them best.

    They should be no taller than a row of mean length has use for, and no taller than leaves a
    program to each multiprocessor: short prompts would rather be done in parallel.
    """
    tallest = 128 if head_dim <= 128 else 64  # or registers spill, even of twice the warps
    if dtype == torch.float32:
        tallest = 16  # exact products have no matrix unit to use best
    block_m = 16
    for height in (64, 128):
        has_use = num_tokens * group >= height * num_rows
        fills_device = num_tokens * num_heads >= height * gpu.num_multiprocessors
        if height <= tallest and has_use and fills_device:
            block_m = height
    block_m = max(block_m, next_power_of_2(group))
    tile = _tile(gpu, head_dim, dtype)
    if block_m == 16 and head_dim <= 64:
        tile = min(tile, 32)  # of more scores registers spill, for groups of 1 and 3
    return Tiling(
        block_m=block_m,
        tile=tile,
        num_warps=8 if block_m >= tallest > 16 else 4,
        num_stages=gpu.num_stages,
    )


def _tile(gpu: Gpu, head_dim: int, dtype: torch.dtype) -> int:
    """A power of two; scores and weights of more than 64 would crowd the registers."""
    if dtype == torch.float32:
        return 16
    tile: int = gpu.tile_bytes // (next_power_of_2(head_dim) * dtype.itemsize)
    return max(min(tile, 64), 16)
