"""What can be known to fail before anything is downloaded or started.

Each would be found by the process that it concerns, a minute later. Only what is sure is refused
here: what cannot be told is left to that process.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from protos import blocks
from protos.flag import Flag
from protos.flags import (
    BLOCK_SIZE,
    DEVICE,
    KV_CACHE_MEMORY,
    MAX_MODEL_LEN,
    NUM_BLOCKS,
)
from quire.errors import ConfigurationError
from quire.options import StackOptions

GPU_TRACES = ("nvidiactl", "nvidia0", "dxg", "kfd", "nvmap", "nvhost-ctrl-gpu")
"""In /dev, whatever a driver of a GPU that torch calls "cuda" leaves: NVIDIA's, also under Windows
and on boards, and AMD's."""


def check_machine(options: StackOptions) -> None:
    """Raises ConfigurationError for a GPU that is not here, or more memory than there is."""
    no_gpu = _is_without_gpu()
    if options.device == "cuda" and no_gpu:
        raise ConfigurationError(
            f"{DEVICE.option} is cuda; this machine has no GPU: neither a driver's file in /dev "
            "nor nvidia-smi"
        )
    if options.kv_cache_memory is None or not (options.device == "cpu" or no_gpu):
        return
    asked = KV_CACHE_MEMORY.checked(options.kv_cache_memory) or 0
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if asked > there:
        raise ConfigurationError(
            f"{KV_CACHE_MEMORY.option} is {asked} bytes; this machine has {there}"
        )


def check_model(options: StackOptions, path: Path) -> None:
    """Raises ConfigurationError if sequences shall be longer than the model in `path` can be, or
    than the KV blocks that were asked for."""
    limit, asked = _max_position(path), _given(MAX_MODEL_LEN, options.max_model_len)
    if limit is not None and asked is not None and asked > limit:
        raise ConfigurationError(
            f"{MAX_MODEL_LEN.option} is {asked}; the model in {path} has 1 to {limit}"
        )
    length = asked or limit
    num_blocks = _given(NUM_BLOCKS, options.num_blocks)
    if length is None or num_blocks is None:
        return
    block_size = _given(BLOCK_SIZE, options.block_size)
    if block_size is None:
        block_size = blocks.BLOCK_SIZE
    if num_blocks * block_size < length:
        raise ConfigurationError(
            f"{NUM_BLOCKS.option} is {num_blocks}, of {block_size} tokens each; one sequence of "
            f"max_model_len {length} needs {-(-length // block_size)}; "
            f"it is enough for {MAX_MODEL_LEN.option} {num_blocks * block_size}"
        )


def _given(flag: Flag[int | None], value: int | None) -> int | None:
    return None if value is None else flag.checked(value)


def _max_position(path: Path) -> int | None:
    """None: what the model lacks, and what holds then, the worker knows."""
    try:
        limit = json.loads((path / "config.json").read_bytes())["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return limit if isinstance(limit, int) else None


def _is_without_gpu() -> bool:
    traces = any((Path("/dev") / name).exists() for name in GPU_TRACES)
    return sys.platform == "linux" and not traces and shutil.which("nvidia-smi") is None
