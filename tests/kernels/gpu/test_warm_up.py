"""What a runner runs at its start compiles every kernel that a served step launches."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.batch import AttentionBatch
from kernels.gpu import tiling
from kernels.gpu.tiling import AMPERE, HOPPER, Gpu, Tiling
from kernels.ops import DEVICE_STEP_REFERENCE
from tests.worker.builders import VOCAB_SIZE, write_tiny_llama
from worker.device_start import DeviceStart
from worker.kv_cache import KVCache
from worker.lane import HostLane
from worker.loader import load_model
from worker.sizes import Sizes

CPU = torch.device("cpu")
HEADS = {"8B": (32, 8, 128), "7B": (28, 4, 128), "0.6B": (16, 8, 128), "wide": (16, 8, 256)}


class Onlooker:
    """In a model's place; notes tokens and rows of the chunks in each step."""

    def __init__(self) -> None:
        self.chunks: set[tuple[int, int]] = set()

    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.logits(self.hidden(batch, kv)[batch.sample_index])

    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        if batch.num_rows > batch.num_decodes:
            num_tokens = batch.num_tokens - batch.num_decodes
            self.chunks.add((num_tokens, batch.num_rows - batch.num_decodes))
        return torch.zeros(batch.num_tokens, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(hidden), VOCAB_SIZE)


def served(budget: int, max_model_len: int) -> Iterator[tuple[int, int]]:
    """Tokens and rows of many steps that may come."""
    for num_tokens in range(1, budget + 1):
        fewest = -(-num_tokens // max_model_len)
        yield from ((num_tokens, n) for n in (fewest, fewest + 1, 8, 64) if n <= num_tokens)


@pytest.mark.parametrize("max_model_len", [200, 4096])
@pytest.mark.parametrize("gpu", [HOPPER, AMPERE, HOPPER._replace(num_multiprocessors=24)], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_every_tiling_has_run_before_the_first_request(
    name: str, gpu: Gpu, max_model_len: int, tmp_path: Path
) -> None:
    loaded, onlooker = load_model(write_tiny_llama(tmp_path), dtype="auto", device=CPU), Onlooker()
    stranger: Any = onlooker
    loaded = replace(loaded, model=stranger, max_model_len=max_model_len)
    sizes = Sizes(block_size=16, max_num_seqs=64, max_num_batched_tokens=2048)
    start = DeviceStart(loaded, sizes, HostLane(), DEVICE_STEP_REFERENCE, CPU)
    start.start(-(-max_model_len // 16)).close()
    num_heads, num_kv_heads, head_dim = HEADS[name]

    def tiled(step: tuple[int, int]) -> Tiling:
        group = num_heads // num_kv_heads
        return tiling.chunk_tiling(gpu, *step, num_heads, group, head_dim, torch.bfloat16)

    assert {*map(tiled, served(2048, max_model_len))} <= {*map(tiled, onlooker.chunks)}
