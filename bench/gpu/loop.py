"""The worker's own loop on the device with plans made here: no scheduler, no transport, no text.

Plans are launched ahead of their results, as many as the scheduler keeps in flight.
"""

import gc
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.gpu.device import Device
from bench.gpu.scale import Load
from kernels.ops import DEVICE_STEP_REFERENCE, select_step
from worker.constraints import Constraints
from worker.device_runner import DeviceRunner
from worker.device_tables import DeviceTables, Layout
from worker.kv_cache import KVCache
from worker.loader import LoadedModel, load_model
from worker.plans import Admission, BatchPlan, Int32Column, Sampling, StepResult
from worker.slot_counts import SlotCounts

BLOCK_SIZE = 16
_IN_FLIGHT = 3
_PATIENCE_S = 120.0
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Steps:
    """Several steps in a row.

    Attributes:
        step_s: seconds from the first launch to the last result, for each step.
        busy_us: the device's time from a step's first work to its last; the median.
        idle_us: the device's time before a step; the median.
    """

    step_s: float
    busy_us: float
    idle_us: float


class Loop:
    """A `DeviceRunner` whose cache holds noise, which costs what text costs."""

    def __init__(
        self,
        loaded: LoadedModel,
        device: Device,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_blocks: int,
    ) -> None:
        self._vocab_size = loaded.config.vocab_size
        self._max_model_len = loaded.max_model_len
        counts = SlotCounts(
            max_num_seqs=max_num_seqs,
            max_model_len=loaded.max_model_len,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
        )
        layout = Layout(
            max_num_seqs=max_num_seqs,
            max_model_len=loaded.max_model_len,
            max_blocks=counts.max_blocks,
            max_num_batched_tokens=max_num_batched_tokens,
            vocab_size=self._vocab_size,
        )
        at = device.torch_device
        kv = KVCache(loaded.config, num_blocks, BLOCK_SIZE, loaded.dtype, at)
        for cache in (*kv.keys, *kv.values):
            cache.normal_()
        step_ops = select_step(at, max_num_seqs, self._vocab_size) or DEVICE_STEP_REFERENCE
        tables = DeviceTables(layout, at, self._vocab_size)
        self.runner = DeviceRunner(
            loaded.model,
            kv,
            counts,
            tables,
            device.lane,
            step_ops,
            Constraints(max_num_seqs, self._vocab_size, None),
            loaded.pooler(max_num_seqs, at, device.lane),
            max_num_seqs,
        )

    def decodes(self, rows: int, context: int, num_steps: int, *, captured: bool) -> Steps:
        """Decode steps of so many rows, the first with contexts of so many tokens.

        Args:
            rows: sequences.
            context: tokens whose KV the cache is taken to hold, and the one that is computed.
            num_steps: as many are timed.
            captured: replays the step that was captured for so many rows; else it is launched
                kernel by kernel.
        """
        self.runner.reset()
        slots = np.arange(rows, dtype=np.int32)
        length = context + num_steps + 4
        admitted = tuple(
            self._admission(slot, context, length, num_computed=context - 1)
            for slot in slots.tolist()
        )
        bucket = rows if captured else 0

        def plans(first: int, count: int) -> Iterator[BatchPlan]:
            for step in range(first, first + count):
                is_first = step == 1
                yield _plan(
                    step,
                    admit=admitted if is_first else (),
                    decode=slots if is_first else None,
                    graph_bucket=bucket,
                )

        self._run(plans(1, 3))  # what is to be compiled is
        gc.collect()
        began = time.perf_counter()
        results = self._run(plans(4, num_steps))
        step_s = (time.perf_counter() - began) / num_steps
        if any(len(result.token_id) != rows or result.finish.any() for result in results):
            raise RuntimeError("rows ended, or had logits that are not finite")
        return Steps(
            step_s,
            float(np.median([result.timing.forward_us for result in results])),
            float(np.median([result.timing.wait_us for result in results])),
        )

    def prompt_s(self, length: int, chunk: int) -> float:
        """Seconds from the first launch of a prompt's chunks to its first token."""
        self.runner.reset()
        admitted = self._admission(0, length, length + 2, num_computed=0)
        slot = np.zeros(1, np.int32)
        plans = [
            _plan(
                1 + start // chunk,
                admit=() if start else (admitted,),
                chunk_slot=slot,
                chunk_start=_column(start),
                chunk_length=_column(min(chunk, length - start)),
            )
            for start in range(0, length, chunk)
        ]
        began = time.perf_counter()
        results = self._run(plans)
        if len(results[-1].token_id) != 1 or results[-1].finish.any():
            raise RuntimeError("the prompt gave no token")
        return time.perf_counter() - began

    def load_s(self, load: Load, budget: int) -> float:
        """Seconds for requests that come together: prompts first, then all decode in step."""
        self.runner.reset()
        total = load.input_len + load.output_len
        at_once = max(1, budget // load.input_len)
        groups = [
            range(first, min(first + at_once, load.count))
            for first in range(0, load.count, at_once)
        ]
        slots = np.arange(load.count, dtype=np.int32)
        bucket = load.count if load.count in self.runner.graph_buckets else 0

        def plans() -> Iterator[BatchPlan]:
            for step, group in enumerate(groups, start=1):
                chunk_slot = slots[group.start : group.stop]
                yield _plan(
                    step,
                    admit=tuple(
                        self._admission(slot, load.input_len, total, num_computed=0)
                        for slot in group
                    ),
                    chunk_slot=chunk_slot,
                    chunk_start=np.zeros_like(chunk_slot),
                    chunk_length=np.full_like(chunk_slot, load.input_len),
                )
            for step in range(load.output_len - 1):
                decode = None if step else slots
                yield _plan(len(groups) + 1 + step, decode=decode, graph_bucket=bucket)

        began = time.perf_counter()
        results = self._run(plans())
        took = time.perf_counter() - began
        if sum(len(result.token_id) for result in results) != load.count * load.output_len:
            raise RuntimeError("not every token came")
        return took

    def close(self) -> None:
        """Ends its thread and lets its graphs go."""
        self.runner.close()

    def _admission(self, slot: int, num_tokens: int, total: int, *, num_computed: int) -> Admission:
        each = -(-total // BLOCK_SIZE)
        dice = np.random.default_rng(slot)
        return Admission(
            slot=slot,
            generation=0,
            token_ids=dice.integers(0, self._vocab_size, num_tokens, dtype=np.int32),
            num_prompt_tokens=num_tokens,
            max_total_tokens=min(total, self._max_model_len),
            blocks=np.arange(1 + slot * each, 1 + (slot + 1) * each, dtype=np.int32),
            num_computed=num_computed,
            seed=slot,
            sampling=Sampling(),
        )

    def _run(self, plans: Iterable[BatchPlan]) -> list[StepResult]:
        """Launches them, a few ahead of the results; returns when the last result is there."""
        results: list[StepResult] = []
        free = threading.Semaphore(_IN_FLIGHT)

        def deliver(result: StepResult) -> None:
            results.append(result)
            free.release()

        for plan in plans:
            _take(free)
            self.runner.launch(plan, 0, deliver)
        for _ in range(_IN_FLIGHT):
            _take(free)
        return results


def _take(free: threading.Semaphore) -> None:
    if not free.acquire(timeout=_PATIENCE_S):
        raise RuntimeError(f"no result came for {_PATIENCE_S:.0f} s")


def _column(*values: int) -> Int32Column:
    return np.array(values, np.int32)


def _plan(
    step: int,
    *,
    admit: Sequence[Admission] = (),
    decode: Int32Column | None = None,
    chunk_slot: Int32Column = _NONE,
    chunk_start: Int32Column = _NONE,
    chunk_length: Int32Column = _NONE,
    graph_bucket: int = 0,
) -> BatchPlan:
    return BatchPlan(
        epoch=1,
        step_id=step,
        retire=_NONE,
        admit=tuple(admit),
        append_slot=_NONE,
        append_index=_NONE,
        append_block=_NONE,
        decode=decode,
        chunk_slot=chunk_slot,
        chunk_start=chunk_start,
        chunk_length=chunk_length,
        graph_bucket=graph_bucket,
    )


def load_shape(directory: Path, device: Device, max_model_len: int) -> LoadedModel:
    """Random weights for a directory that `bench.gpu.shapes` wrote."""
    return load_model(
        directory,
        dtype=str(device.dtype).removeprefix("torch."),
        device=device.torch_device,
        max_model_len=max_model_len,
        load_format="dummy",
    )
