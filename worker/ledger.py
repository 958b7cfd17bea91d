"""The worker's memory, byte by byte: what weights take, what KV gets, what a step needs.

The number of KV blocks follows from it. A worker that could not hold one sequence of full length
does not start; `MemoryShortError` says how much it would need, and what length would fit. Whether
what the operator asked for is enough is known before the weights are read.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kernels.sampling_inputs import PenaltyTables
from protos.limits import MAX_DRAFT_TOKENS
from worker.encoder_loader import OpenedEncoder
from worker.kv_cache import KVCache
from worker.loader import LoadedModel, OpenedModel
from worker.sizes import Sizes

_CPU_SHARE = 0.25
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class MemoryShortError(Exception):
    """Weights, or KV for one sequence of full length, do not fit; the message has both figures."""


@dataclass(frozen=True)
class KVRequest:
    """What the operator asked for; None leaves it to the ledger.

    Attributes:
        num_blocks: exactly so many.
        memory_bytes: as many as fit in these bytes.
    """

    num_blocks: int | None
    memory_bytes: int | None


@dataclass(frozen=True)
class KVNeed:
    """What KV costs; a model's configuration is enough to know it.

    Attributes:
        block_bytes: of one block over all layers.
        block_size: tokens per block.
        max_model_len: tokens of the longest sequence.
    """

    block_bytes: int
    block_size: int
    max_model_len: int

    @classmethod
    def of(cls, model: OpenedModel | LoadedModel, block_size: int) -> "KVNeed":
        """That of a model."""
        block_bytes = KVCache.bytes_per_block(model.share, block_size, model.backend.kv_dtype)
        return cls(block_bytes, block_size, model.max_model_len)

    @property
    def blocks_each(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_model_len // self.block_size)

    def check(self, request: KVRequest) -> None:
        """Raises `MemoryShortError` if less was asked for than the longest sequence needs."""
        if request.num_blocks is not None:
            self.blocks_in((request.num_blocks + 1) * self.block_bytes, "--num-blocks gives")
        elif request.memory_bytes is not None:
            self.blocks_in(request.memory_bytes, "--kv-cache-memory gives")

    def blocks_in(self, given: int, whence: str) -> int:
        """Usable blocks in `given` bytes, which come from `whence`.

        Raises `MemoryShortError` when one sequence of `max_model_len` does not fit.
        """
        found = given // self.block_bytes - 1
        if found >= self.blocks_each:
            return found
        fits = (
            f"enough for --max-model-len {found * self.block_size}" if found > 0 else "too little"
        )
        raise MemoryShortError(
            f"one sequence of max_model_len {self.max_model_len} needs "
            f"{_size((self.blocks_each + 1) * self.block_bytes)} of KV memory; "
            f"{whence} {_size(given)}, {fits}"
        )


def check_weights(model: OpenedModel | OpenedEncoder) -> None:
    """Raises `MemoryShortError` if the weights, unread yet, need more than is free for them."""
    needed, free = model.weight_bytes, free_bytes(model.device)
    if needed > free:
        raise MemoryShortError(
            f"the weights need {_size(needed)} as {str(model.dtype).removeprefix('torch.')}; "
            f"{_size(free)} of memory are free on {model.device}"
        )


@dataclass(frozen=True)
class Claims:
    """What steps need besides weights and KV, as measured on the device.

    Attributes:
        workspace_bytes: step tables, upload buffers, activations and logits of the largest step.
        graph_bytes: captured steps.
        spared_bytes: of the device's memory, what is not to be used.
    """

    workspace_bytes: int
    graph_bytes: int
    spared_bytes: int = 0


@dataclass(frozen=True)
class Ledger:
    """Where the bytes go.

    Attributes:
        free_bytes: what the machine or the device had left once the weights were there.
        weight_bytes: the model.
        kv_bytes: all KV blocks, the null block included.
        workspace_bytes: step tables, the penalties' token counts, and activations and logits of the
            largest step.
        graph_bytes: captured steps.
        num_blocks: usable KV blocks.
        block_size: tokens per block.
        max_model_len: tokens of the longest sequence.
        is_shared: the free bytes are the machine's, where other workers count on the same ones.
        mapped_bytes: of the weights, those in pages of a file, which other workers may map.
    """

    free_bytes: int
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    graph_bytes: int
    num_blocks: int
    block_size: int
    max_model_len: int
    is_shared: bool
    mapped_bytes: int = 0

    def limited_to(self, num_blocks: int) -> "Ledger":
        """With no more usable blocks than that."""
        block_bytes = self.kv_bytes // (self.num_blocks + 1)
        return replace(self, num_blocks=num_blocks, kv_bytes=(num_blocks + 1) * block_bytes)

    def lines(self) -> list[str]:
        """The ledger for people, one entry a line."""
        tokens = self.num_blocks * self.block_size
        graphs = [f"memory: graphs     {_size(self.graph_bytes):>11}"] if self.graph_bytes else []
        slack = self.free_bytes - self.kv_bytes - self.workspace_bytes - self.graph_bytes
        others = "; other workers of this machine take theirs from it, too"
        mapped = "   mapped from a file, which workers share" if self.mapped_bytes else ""
        return [
            f"memory: weights    {_size(self.weight_bytes):>11}{mapped}",
            *graphs,
            f"memory: KV cache   {_size(self.kv_bytes):>11}   {self.num_blocks:,} blocks of "
            f"{self.block_size} tokens = {tokens:,} tokens, "
            f"{tokens / self.max_model_len:.1f} sequences of {self.max_model_len:,}",
            f"memory: workspace  {_size(self.workspace_bytes):>11}   at most",
            f"memory: slack      {_size(max(0, slack)):>11}   when all of that is in use"
            f"{others if self.is_shared else ''}",
        ]


def settle(
    loaded: LoadedModel,
    request: KVRequest,
    sizes: Sizes,
    *,
    device: torch.device,
    claims: Claims | None = None,
) -> Ledger:
    """Decides how many KV blocks the worker has.

    By default: enough for every slot at full length, within what the claims of a device leave; or
    without claims, within a quarter of what the machine has free (its other processes want some).

    Raises `MemoryShortError` when one sequence of `max_model_len` does not fit.
    """
    # Pages of a file count as free, though those of the weights are read in every step.
    free = max(0, free_bytes(device) - loaded.mapped_bytes)
    need = KVNeed.of(loaded, sizes.block_size)
    left, is_shared = free, claims is None
    if claims is None:
        workspace = _workspace_bytes(loaded, sizes)
        claims = Claims(workspace, graph_bytes=0)
    else:
        left = max(0, free - claims.workspace_bytes - claims.graph_bytes)
    if request.num_blocks is not None:
        given, whence = (request.num_blocks + 1) * need.block_bytes, "--num-blocks gives"
    elif request.memory_bytes is not None:
        given, whence = request.memory_bytes, "--kv-cache-memory gives"
    elif is_shared:
        given, whence = int(free * _CPU_SHARE), "a quarter of the free memory is"
    else:
        given, whence = max(0, left - claims.spared_bytes), "free device memory leaves"
    if given > left:
        beside = "" if left == free else " beside steps and graphs"
        raise MemoryShortError(f"KV memory is {_size(given)}; only {_size(left)} are free{beside}")
    num_blocks = need.blocks_in(given, whence)
    if request.num_blocks is None and request.memory_bytes is None:
        num_blocks = min(num_blocks, need.blocks_each * sizes.max_num_seqs)
    return Ledger(
        free_bytes=free,
        weight_bytes=loaded.weight_bytes,
        kv_bytes=(num_blocks + 1) * need.block_bytes,
        workspace_bytes=claims.workspace_bytes,
        graph_bytes=claims.graph_bytes,
        num_blocks=num_blocks,
        block_size=sizes.block_size,
        max_model_len=loaded.max_model_len,
        is_shared=is_shared,
        mapped_bytes=loaded.mapped_bytes,
    )


def _workspace_bytes(loaded: LoadedModel, sizes: Sizes) -> int:
    config, length = loaded.share, loaded.max_model_len
    tables = 4 * sizes.max_num_seqs * (length + -(-length // sizes.block_size))
    # Residual, normed, gate and up side by side, their product; and two copies of the logits.
    width = 2 * config.hidden_size + 3 * config.intermediate_size
    activations = loaded.dtype.itemsize * sizes.max_num_batched_tokens * width
    sampled = sizes.max_num_seqs + MAX_DRAFT_TOKENS
    logits = 2 * 4 * sampled * config.vocab_size
    penalties = PenaltyTables.num_bytes(sizes.max_num_seqs, config.vocab_size)
    return tables + activations + logits + penalties


def free_bytes(device: torch.device) -> int:
    """Memory that could still be had: the device's, or the machine's within its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    machine = _machine_bytes()
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        # Pages of files, those of the weights among them, count as used and are given up on demand.
        pages = re.findall(
            r"^(?:in)?active_file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.M
        )
    except (OSError, ValueError):
        return machine
    return min(machine, max(0, limit - used + sum(map(int, pages))))


def _machine_bytes() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    # Without /proc, what the machine has stands for what is free of it.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(num_bytes: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if num_bytes >= 1 << power:
            return f"{num_bytes / (1 << power):.2f} {unit}"
    return f"{num_bytes / 1024:.2f} KiB"
