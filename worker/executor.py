"""The loop that owns the device: receive a plan, run it, send its result; nothing else runs here.

    receive ─▶ apply to the mirror ─▶ forward ─▶ sample ─▶ commit ─▶ send

Plans come from the transport child over a socketpair (`worker.link`), so that no network code
competes with this thread for the interpreter.
"""

import gc
import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch

from kernels.batch import AttentionBatch
from worker import wire
from worker.kv_cache import KVCache
from worker.metrics import StepTotals, resident_bytes
from worker.pipe import MARK, Pipe
from worker.plans import BatchPlan, Drain, PlanError, StepResult, Timing, Welcome
from worker.sampler import Sampler, logprob_columns
from worker.step_state import SampledColumns, StepState

log = logging.getLogger(__name__)

IDLE_S = 1.0
"""An executor without a plan says this often that it is alive."""


class Model(Protocol):
    """What the executor asks of a model."""

    def forward(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        """Logits of the sampled rows, [num_sampled, vocab_size] float32."""
        ...


class Runner:
    """Executes plans: the mirror, the model and the sampler joined into one step."""

    def __init__(self, model: Model, kv: KVCache, state: StepState, sampler: Sampler) -> None:
        self._model = model
        self._kv = kv
        self._state = state
        self._sampler = sampler

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended."""
        return self._state.num_live

    def reset(self) -> None:
        """Forgets every sequence."""
        self._state.reset()

    @torch.inference_mode()
    def step(self, plan: BatchPlan, wait_us: int = 0) -> StepResult:
        """Runs one plan; raises `PlanError` when it contradicts the mirror.

        Args:
            plan: the next one, in order.
            wait_us: for the result's timing: how long the device waited for this plan.
        """
        started = time.perf_counter_ns()
        self._state.apply(plan)
        for admission in plan.admit:
            self._sampler.admit(admission)
        batch, rows = self._state.next_batch(plan)
        prepared = forwarded = time.perf_counter_ns()
        columns, logprobs = SampledColumns.none(), None
        if batch.num_tokens:
            logits = self._model.forward(batch, self._kv)
            forwarded = time.perf_counter_ns()
            if len(rows.slots):
                sampled = self._sampler.sample(logits, rows)
                columns = self._state.commit(rows, sampled.token_id, sampled.failed)
                if sampled.logprobs is not None:
                    logprobs = logprob_columns(sampled.logprobs, columns)
        return StepResult(
            epoch=plan.epoch,
            step_id=plan.step_id,
            slot=columns.slot,
            generation=columns.generation,
            token_id=columns.token_id,
            finish=columns.finish,
            logprobs=logprobs,
            timing=Timing(
                wait_us=wait_us,
                prepare_us=(prepared - started) // 1000,
                forward_us=(forwarded - prepared) // 1000,
                sample_us=(time.perf_counter_ns() - forwarded) // 1000,
            ),
        )


class Executor:
    """Serves plans in order, epoch after epoch.

    Args:
        runner: runs a plan.
        pipe: to the transport child.
        totals: what the metrics show; updated after each step.
        on_welcome: called at each Welcome, after the mirror was reset.
    """

    def __init__(
        self, runner: Runner, pipe: Pipe, totals: StepTotals, on_welcome: Callable[[], None]
    ) -> None:
        self._runner = runner
        self._pipe = pipe
        self._totals = totals
        self._on_welcome = on_welcome
        self._epoch: int | None = None
        self._next_step = 1
        self._wait_ns = 0

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serves until told to stop or drained; the plan at hand is always finished.

        Raises:
            PipeClosedError: the transport child has gone.
            PlanError: the scheduler's plans contradict this worker's state.
        """
        # What exists now stays: the collector need not look at it in the middle of a step.
        gc.collect()
        gc.freeze()
        while not should_stop():
            asked = time.perf_counter_ns()
            frame = self._pipe.receive(IDLE_S)
            self._wait_ns += time.perf_counter_ns() - asked
            if frame is None:
                self._pipe.send(wire.encode_telemetry(self._totals.num_steps, resident_bytes()))
                continue
            message = wire.parse_response(frame)
            if isinstance(message, Drain):
                log.info("the scheduler drains this worker")
                return
            if isinstance(message, Welcome):
                self._welcome(message)
            elif message.epoch == self._epoch:
                self._step(message)

    def _welcome(self, welcome: Welcome) -> None:
        self._runner.reset()
        self._totals.num_live = 0  # so the time without a scheduler is no wait for a plan
        self._epoch = welcome.epoch
        self._next_step = 1
        self._pipe.send(MARK)
        self._on_welcome()

    def _step(self, plan: BatchPlan) -> None:
        if plan.step_id != self._next_step:
            raise PlanError(f"step {plan.step_id} came; step {self._next_step} is next")
        self._next_step += 1
        # Without live sequences the device was idle for want of work, not of a plan.
        wait_us = self._wait_ns // 1000 if self._totals.num_live else 0
        result = self._runner.step(plan, wait_us)
        self._pipe.send(wire.encode_result(result))
        self._totals.add(result, self._runner.num_live)
        self._wait_ns = 0
