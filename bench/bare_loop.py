"""The worker's own loop without anything around it: what serving could reach at best.

The worker's `HostRunner` (mirror, forward pass, sampler) executes plans that are made here, in one
process: no scheduler, no gRPC, no text. All requests start together; their prompts are computed in
as few steps as the token budget allows, then all decode together. What a decode step takes before,
in and after the forward pass is told, too: half of the steps take less.

    python -m bench.bare_loop --model DIR --threads 2 --concurrency 8
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from bench.mixed_requests import uniform_requests
from worker.constraints import Constraints
from worker.cores import size_thread_pools
from worker.plans import Admission, BatchPlan, Int32Column, Sampling, Timing
from worker.primitive_caches import bound_primitive_caches

BLOCK_SIZE = 16
TOKEN_BUDGET = 2048
_NONE = np.empty(0, np.int32)


def run(
    model: Path, concurrency: int, input_len: int, output_len: int, temperature: float
) -> dict[str, float]:
    """Tokens per second of the better of two rounds, after one to warm up.

    Threads are those the process was started with.
    """
    loop = _Loop(model, concurrency, input_len, output_len, temperature)
    loop.round()
    better = min((loop.round() for _ in range(2)), key=lambda done: done.duration_s)
    return {
        "concurrency": concurrency,
        "duration_s": better.duration_s,
        "output_tokens_per_s": concurrency * output_len / better.duration_s,
        "prepare_us": median(step.prepare_us for step in better.decodes),
        "forward_us": median(step.forward_us for step in better.decodes),
        "sample_us": median(step.sample_us for step in better.decodes),
    }


@dataclass(frozen=True)
class _Round:
    """From the first plan to the last result, and of each decode step in it."""

    duration_s: float
    decodes: list[Timing]


class _Loop:
    """A runner, and the plans of one round."""

    def __init__(
        self, model: Path, concurrency: int, input_len: int, output_len: int, temperature: float
    ) -> None:
        import torch

        from kernels.jit import set_threads
        from worker.backends import Wishes
        from worker.host_runner import HostRunner
        from worker.kv_cache import KVCache
        from worker.loader import load_model
        from worker.sampler import Sampler
        from worker.step_state import StepState

        set_threads(torch.get_num_threads())
        device = torch.device("cpu")
        total = input_len + output_len
        self._blocks_each = -(-total // BLOCK_SIZE)
        num_blocks = concurrency * self._blocks_each
        wishes = Wishes("auto", torch.get_num_threads())
        loaded = load_model(model, dtype="auto", device=device, max_model_len=total, wishes=wishes)
        vocab_size = loaded.config.vocab_size
        state = StepState(
            max_num_seqs=concurrency,
            max_model_len=total,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            vocab_size=vocab_size,
        )
        kv = KVCache(loaded.config, num_blocks, BLOCK_SIZE, loaded.backend.kv_dtype, device)
        sampler = Sampler(max_num_seqs=concurrency, vocab_size=vocab_size)
        constraints = Constraints(concurrency, vocab_size, None)
        pooler = loaded.pooler(concurrency, device)
        self._runner = HostRunner(loaded.model, kv, state, sampler, constraints, pooler)
        self._requests = uniform_requests(
            concurrency, input_len=input_len, output_len=output_len, seed=7
        )
        self._input_len, self._output_len = input_len, output_len
        self._sampling = Sampling(temperature=temperature)

    def round(self) -> _Round:
        """All requests, from their prompts to their last tokens."""
        self._runner.reset()
        started = time.perf_counter()
        count, step = len(self._requests), 0
        at_once = max(1, TOKEN_BUDGET // self._input_len)
        for first in range(0, count, at_once):
            step += 1
            self._runner.step(self._prefill(step, range(first, min(count, first + at_once))))
        everyone = np.arange(count, dtype=np.int32)
        decodes = []
        for ahead in range(self._output_len - 1):
            step += 1
            result = self._runner.step(_plan(step, decode=everyone if ahead == 0 else None))
            decodes.append(result.timing)
        return _Round(time.perf_counter() - started, decodes)

    def _prefill(self, step: int, slots: range) -> BatchPlan:
        chunk_slot = np.array(slots, np.int32)
        return _plan(
            step,
            admit=tuple(self._admission(slot) for slot in slots),
            chunk_slot=chunk_slot,
            chunk_start=np.zeros_like(chunk_slot),
            chunk_length=np.full_like(chunk_slot, self._input_len),
        )

    def _admission(self, slot: int) -> Admission:
        first_block = slot * self._blocks_each + 1
        return Admission(
            slot=slot,
            generation=1,
            token_ids=np.array(self._requests[slot].token_ids, np.int32),
            num_prompt_tokens=self._input_len,
            max_total_tokens=self._input_len + self._output_len,
            blocks=np.arange(first_block, first_block + self._blocks_each, dtype=np.int32),
            num_computed=0,
            seed=slot,
            sampling=self._sampling,
        )


def _plan(
    step: int,
    *,
    admit: tuple[Admission, ...] = (),
    decode: Int32Column | None = None,
    chunk_slot: Int32Column = _NONE,
    chunk_start: Int32Column = _NONE,
    chunk_length: Int32Column = _NONE,
) -> BatchPlan:
    return BatchPlan(
        epoch=1,
        step_id=step,
        retire=_NONE,
        admit=admit,
        append_slot=_NONE,
        append_index=_NONE,
        append_block=_NONE,
        decode=decode,
        chunk_slot=chunk_slot,
        chunk_start=chunk_start,
        chunk_length=chunk_length,
    )


def main(
    model: Annotated[Path, typer.Option(help="Model directory.")],
    concurrency: int = 8,
    input_len: int = 256,
    output_len: int = 128,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest tokens.")] = 0.0,
    threads: Annotated[int | None, typer.Option(help="Compute threads.")] = None,
) -> None:
    """Prints one line of JSON."""
    if threads:
        size_thread_pools(threads)
        bound_primitive_caches()
    print(json.dumps(run(model, concurrency, input_len, output_len, temperature)))


if __name__ == "__main__":
    typer.run(main)
