"""How a device runner starts, where the device is the host: all is real but what is measured."""

import gc
import weakref
from typing import Any

import pytest
import torch

from kernels.batch import AttentionBatch
from kernels.ops import DEVICE_STEP_REFERENCE
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE
from tests.worker.runners import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    NUM_SLOTS,
    generate,
    make_device_runner,
    make_host_runner,
    tenants,
)
from worker import device_start
from worker.device_start import DeviceStart, bucket_range
from worker.executor import Model
from worker.kv_cache import KVCache
from worker.lane import HostLane, Lane
from worker.ledger import Claims
from worker.loader import LoadedModel
from worker.models.config import ModelConfig
from worker.plans import Sampling
from worker.sizes import Sizes, default_buckets
from worker.warm_up import run_largest


def make_start(
    loaded: LoadedModel,
    buckets: tuple[int, ...],
    max_num_batched_tokens: int = 64,
    lane: Lane | None = None,
) -> DeviceStart:
    sizes = Sizes(BLOCK_SIZE, NUM_SLOTS, max_num_batched_tokens, buckets)
    cpu = torch.device("cpu")
    return DeviceStart(loaded, sizes, lane or HostLane(), DEVICE_STEP_REFERENCE, cpu)


@pytest.mark.parametrize("buckets", [(), (4, 16)])
def test_what_runs_at_the_start_leaves_no_trace(
    tiny_model: LoadedModel, buckets: tuple[int, ...]
) -> None:
    start = make_start(tiny_model, buckets)
    assert start.rehearse(spared_bytes=77.5) == Claims(0, 0, 77)
    runner = start.start(NUM_BLOCKS)
    assert runner.graph_buckets == buckets
    assert runner.num_live == 0
    sequences = list(tenants(Sampling(temperature=0.7)).values())
    expected = generate(make_host_runner(tiny_model), sequences, chunk=50)
    assert generate(runner, sequences, chunk=50) == expected
    runner.close()
    assert list(start.seconds) == ["rehearsal", "tables and largest step", "graphs"]


class Weighed:
    """A model that notes tokens and sampled rows of each step."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.steps: list[tuple[int, int]] = []

    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.steps.append((batch.num_tokens, len(batch.sample_index)))
        return self._model.forward(batch, kv, out)

    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        self.steps.append((batch.num_tokens, len(batch.sample_index)))
        return self._model.hidden(batch, kv)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden)


@pytest.mark.parametrize("budget", [5, 16, 31, 64, 75])
def test_the_largest_step_has_every_token_and_every_row(
    tiny_model: LoadedModel, budget: int
) -> None:
    weighed = Weighed(tiny_model.model)
    run_largest(
        make_device_runner(tiny_model, weighed),
        Sizes(BLOCK_SIZE, NUM_SLOTS, max_num_batched_tokens=budget),
        max_model_len=MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
    )
    num_rows = min(NUM_SLOTS, budget)
    assert weighed.steps == [(budget, num_rows), (num_rows, num_rows)]


@pytest.mark.parametrize("buckets", [(), (1,), (1, 2)])
def test_what_was_rehearsed_with_is_given_back(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, buckets: tuple[int, ...]
) -> None:
    caches: list[weakref.ref[KVCache]] = []
    left_over: list[int] = []

    class Noted(KVCache):
        def __init__(self, *arguments: Any) -> None:
            caches.append(weakref.ref(self))
            super().__init__(*arguments)

    class Counting(HostLane):
        def free_bytes(self) -> int:
            gc.collect()
            left_over.append(sum(cache() is not None for cache in caches))
            return super().free_bytes()

    monkeypatch.setattr(device_start, "KVCache", Noted)
    make_start(tiny_model, buckets, lane=Counting()).rehearse(spared_bytes=0)
    assert len(caches) == (2 if buckets else 1)
    assert left_over[-1:] == [0], "memory is counted next"


@pytest.mark.parametrize(("budget", "num_blocks"), [(1, 1), (5, 1), (6, 2), (64, 9), (500, 12)])
def test_rehearsing_takes_no_more_kv_than_its_steps(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, budget: int, num_blocks: int
) -> None:
    """Where KV for the longest sequence does not fit, the ledger says so, not the allocator."""
    made: list[int] = []

    class Noted(KVCache):
        def __init__(self, config: ModelConfig, num_blocks: int, *more: Any) -> None:
            made.append(num_blocks)
            super().__init__(config, num_blocks, *more)

    monkeypatch.setattr(device_start, "KVCache", Noted)
    make_start(tiny_model, (1,), max_num_batched_tokens=budget).rehearse(spared_bytes=0)
    assert set(made) == {num_blocks}


def test_buckets_are_fine_where_steps_are_short() -> None:
    assert default_buckets(1, 2048) == (1,)
    assert default_buckets(6, 2048) == (1, 2, 4, 6)
    assert default_buckets(40, 2048) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert default_buckets(400, 2048)[-4:] == (256, 320, 384, 400)
    assert default_buckets(256, 2048)[-1] == 256


def test_a_step_with_fewer_tokens_than_there_are_slots_has_a_bucket(
    tiny_model: LoadedModel,
) -> None:
    buckets = default_buckets(NUM_SLOTS, 6)
    runner = make_start(tiny_model, buckets, max_num_batched_tokens=6).start(NUM_BLOCKS)
    assert runner.graph_buckets == (1, 2, 4, 6)
    runner.close()


def test_people_are_told_what_was_captured() -> None:
    assert bucket_range(()) == "none"
    assert bucket_range((1, 2, 64)) == "3, for 1 to 64 decode rows"
