"""How a runner on a device comes to be: whatever happens later needs no memory beyond this.

    rehearse   with hardly any KV: the largest step, and the first two graphs   → what they take
    (settle)   KV gets what is left                                             → `worker.ledger`
    start      the tables, the largest step again, and a graph for each bucket

Kernels are compiled on the way, so no step waits for a compiler.
"""

import time
from collections.abc import Iterator, Sequence

import torch

from kernels.ops import DeviceStepOps
from worker.constraints import Constraints
from worker.device_runner import DeviceRunner
from worker.device_tables import DeviceTables, Layout
from worker.grammars import Grammars
from worker.kv_cache import KVCache
from worker.lane import Lane
from worker.ledger import Claims
from worker.loader import LoadedModel
from worker.sizes import Sizes
from worker.slot_counts import SlotCounts
from worker.warm_up import num_blocks_needed, run_largest, warm_up

_GRAPH_SPARE = 1.1
_FEWEST_TOKENS = 16  # fewer are tiled as these are


class DeviceStart:
    """Builds runners for one model on one device.

    Args:
        loaded: the model.
        sizes: how large steps may get.
        lane: the device's queue.
        step_ops: the step's ends.
        device: where the tables go.
        grammars: the compiler of the model's grammars.

    Attributes:
        seconds: how long each phase took, by name.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sizes: Sizes,
        lane: Lane,
        step_ops: DeviceStepOps,
        device: torch.device,
        grammars: Grammars | None = None,
    ) -> None:
        self._loaded = loaded
        self._sizes = sizes
        self._lane = lane
        self._step_ops = step_ops
        self._device = device
        self._grammars = grammars
        self.seconds: dict[str, float] = {}

    def rehearse(self, spared_bytes: float) -> Claims:
        """Measures what the largest step and the graphs take, in memory that is then given back.

        Args:
            spared_bytes: of the device's memory, what is not to be used.
        """
        began = time.perf_counter()
        few_blocks = num_blocks_needed(self._sizes, self._loaded.max_model_len)
        block_bytes = KVCache.bytes_per_block(
            self._loaded.share, self._sizes.block_size, self._loaded.backend.kv_dtype
        )
        workspace = self._lane.peak_bytes(lambda: self._build(few_blocks).close())
        workspace = max(0, workspace - (few_blocks + 1) * block_bytes)
        graphs = self._graph_bytes(few_blocks)
        self._lane.free_bytes()  # gives back what the allocator keeps: it would count as taken
        self.seconds["rehearsal"] = time.perf_counter() - began
        return Claims(workspace, graphs, int(spared_bytes))

    def _graph_bytes(self, num_blocks: int) -> int:
        """What the first graph takes, and the second for each other: they share their memory."""
        buckets = self._sizes.graph_buckets[::-1]
        if not buckets:
            return 0
        runner = self._build(num_blocks)
        left = [self._lane.free_bytes()]
        for bucket in buckets[:2]:
            runner.capture([bucket])
            left.append(self._lane.free_bytes())
        first = left[0] - left[1]
        each = max(0, left[-2] - left[-1]) if len(buckets) > 1 else 0
        runner.close()
        return int(_GRAPH_SPARE * (first + each * (len(buckets) - 1)))

    def start(self, num_blocks: int) -> DeviceRunner:
        """The runner that serves: everything it will ever launch has run once."""
        began = time.perf_counter()
        runner = self._build(num_blocks)
        rehearsed = time.perf_counter()
        runner.capture(self._sizes.graph_buckets)
        self.seconds["tables and largest step"] = rehearsed - began
        self.seconds["graphs"] = time.perf_counter() - rehearsed
        return runner

    def _build(self, num_blocks: int) -> DeviceRunner:
        loaded, sizes = self._loaded, self._sizes
        counts = SlotCounts(
            max_num_seqs=sizes.max_num_seqs,
            max_model_len=loaded.max_model_len,
            num_blocks=num_blocks,
            block_size=sizes.block_size,
        )
        layout = Layout(
            max_num_seqs=sizes.max_num_seqs,
            max_model_len=loaded.max_model_len,
            max_blocks=counts.max_blocks,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            vocab_size=loaded.config.vocab_size,
        )
        runner = DeviceRunner(
            loaded.model,
            KVCache(
                loaded.share, num_blocks, sizes.block_size, loaded.backend.kv_dtype, self._device
            ),
            counts,
            DeviceTables(layout, self._device, loaded.config.vocab_size),
            self._lane,
            self._step_ops,
            Constraints(sizes.max_num_seqs, loaded.config.vocab_size, self._grammars),
            loaded.pooler(sizes.max_num_seqs, self._device, self._lane),
            sizes.max_num_seqs,
        )
        limits = {
            "max_model_len": loaded.max_model_len,
            "vocab_size": loaded.config.vocab_size,
        }
        warm_up(runner, sizes, **limits)
        for num_tokens in prompt_sizes(sizes.max_num_batched_tokens):
            warm_up(runner, sizes, num_prompt_tokens=num_tokens, num_prompts=1, **limits)
        run_largest(runner, sizes, **limits)
        return runner


def prompt_sizes(max_num_batched_tokens: int) -> Iterator[int]:
    """Tokens of prompts for which kernels are tiled in every way there is (`kernels.gpu.tiling`).

    Heights double where tokens do, so one of the powers of two has each height, the tallest the
    greatest.
    """
    num_tokens = _FEWEST_TOKENS
    while num_tokens < max_num_batched_tokens:
        yield num_tokens
        num_tokens *= 2
    yield max_num_batched_tokens


def bucket_range(buckets: Sequence[int]) -> str:
    """One line for people: which numbers of decode rows were captured."""
    if not buckets:
        return "none"
    return f"{len(buckets)}, for {min(buckets)} to {max(buckets)} decode rows"
