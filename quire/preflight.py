"""What can be known to fail before anything is downloaded or started.

Each would be found by the process that it concerns, a minute later. Only what is sure is refused
here: what cannot be told is left to that process.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from protos.flags import DEVICE, KV_CACHE_MEMORY, MAX_MODEL_LEN
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
    """Raises ConfigurationError if sequences shall be longer than the model in `path` can be."""
    if options.max_model_len is None:
        return
    try:
        limit = json.loads((path / "config.json").read_bytes())["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # what it lacks, and what holds then, the worker knows
    asked = MAX_MODEL_LEN.checked(options.max_model_len) or 0
    if isinstance(limit, int) and asked > limit:
        raise ConfigurationError(
            f"{MAX_MODEL_LEN.option} is {asked}; the model in {path} has 1 to {limit}"
        )


def _is_without_gpu() -> bool:
    traces = any((Path("/dev") / name).exists() for name in GPU_TRACES)
    return sys.platform == "linux" and not traces and shutil.which("nvidia-smi") is None
