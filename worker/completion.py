"""What becomes of a step once it has been launched: the wait for its outcome, and its result.

    launch ─▶ queue ─▶ (thread) wait for the copy ─▶ counts hear of it ─▶ result ─▶ deliver

The thread waits, never the one that launches. Results come in launch order.
"""

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.executor import Deliver, Fail
from worker.lane import Array, Fetched
from worker.plans import BatchPlan, Int32Column, Logprobs, StepResult, Timing
from worker.pooling import PooledRows
from worker.prompt_scores import ScoreRun, score_columns
from worker.slot_counts import Int64Column, SlotCounts


@dataclass(frozen=True)
class Launched:
    """A step whose outcome is on its way.

    Attributes:
        plan: what was launched.
        slots: of the rows that sample.
        generation: shares an index with `slots`.
        logprob_rows: which of these rows asked for log-probabilities.
        num_top: alternatives that each of them asked for.
        fetched: tokens and finishes; then vectors, scores and log-probabilities, each if any.
        pooled: the prompts that have their vector; None: none has.
        had_work: sequences were live before the plan.
        prepare_us: host time that the launch took.
        deliver: takes the result.
        score_runs: prompt tokens that are scored.
    """

    plan: BatchPlan
    slots: Int64Column
    generation: Int32Column
    logprob_rows: Int64Column
    num_top: Int64Column
    fetched: Fetched
    pooled: PooledRows | None
    had_work: bool
    prepare_us: int
    deliver: Deliver
    score_runs: tuple[ScoreRun, ...]


class Completion:
    """The thread that waits for outcomes and delivers them, in launch order.

    Args:
        counts: hears of sequences that end.
    """

    def __init__(self, counts: SlotCounts) -> None:
        self._counts = counts
        self._queue: queue.SimpleQueue[Launched | threading.Event | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._fail: Fail = lambda error: None
        threading.Thread(target=self._run, name="completion", daemon=True).start()

    def watch(self, fail: Fail) -> None:
        """From now on `fail` is told, too, when the wait for an outcome or delivering fails."""
        self._fail = fail

    def put(self, launched: Launched) -> None:
        """Delivers it when it is there; raises what went wrong with an earlier one."""
        if self._failure is not None:
            raise self._failure
        self._queue.put(launched)

    def drain(self) -> None:
        """Waits until everything before has been delivered, or delivering has failed."""
        reached = threading.Event()
        self._queue.put(reached)
        reached.wait()

    def close(self) -> None:
        """Ends the thread."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif self._failure is None:
                try:
                    item.deliver(self._result(item))
                # This thread can end nothing: the launching one raises it, with the next plan or
                # when it is told.
                except Exception as error:
                    self._failure = error
                    self._fail(error)

    def _result(self, launched: Launched) -> StepResult:
        arrays = launched.fetched.wait()
        idle_us, busy_us = launched.fetched.device_us()
        token_id, finish = arrays[:2] if arrays else (np.empty(0, np.int32),) * 2
        arrays, vectors, scores = arrays[2:], None, None
        if launched.pooled is not None:
            vectors = launched.pooled.vectors(arrays[0])
            arrays = arrays[1:]
            self._counts.end(vectors.slot, vectors.generation, vectors.finish)
        if launched.score_runs:
            scores = score_columns(launched.score_runs, arrays[:4])
            arrays = arrays[4:]
        rows = np.flatnonzero(token_id >= 0)
        slots = launched.slots[rows]
        self._counts.end(slots, launched.generation[rows], finish[rows])
        return StepResult(
            epoch=launched.plan.epoch,
            step_id=launched.plan.step_id,
            slot=slots.astype(np.int32),
            generation=launched.generation[rows],
            token_id=token_id[rows],
            finish=finish[rows].astype(np.uint8),
            logprobs=_logprobs(launched, rows, arrays),
            scores=scores,
            timing=Timing(
                # Without live sequences the device was idle for want of work, not of a plan.
                wait_us=idle_us if launched.had_work else 0,
                prepare_us=launched.prepare_us,
                forward_us=busy_us,
                sample_us=0,
            ),
            vectors=vectors,
        )


def _logprobs(launched: Launched, rows: Int64Column, arrays: Sequence[Array]) -> Logprobs | None:
    """Of the live rows that asked; None when there are none."""
    alive = np.isin(launched.logprob_rows, rows)
    if not arrays or not alive.any():
        return None
    logprob, rank, top_token_id, top_logprob = arrays
    num_top = launched.num_top[alive]
    wanted = np.arange(top_token_id.shape[1]) < num_top[:, None]
    return Logprobs(
        row=np.searchsorted(rows, launched.logprob_rows[alive]).astype(np.int32),
        logprob=logprob[alive],
        rank=rank[alive].astype(np.int32),
        num_top=num_top.astype(np.int32),
        top_token_id=top_token_id[alive][wanted].astype(np.int32),
        top_logprob=top_logprob[alive][wanted],
    )
