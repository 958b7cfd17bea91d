"""What one step costs the scheduling core: `python -m bench.core_step`.

Two loads at each number of decoding sequences. *steady*: everyone decodes, blocks fill and are
hashed, nobody comes or goes. *churn*: outputs end at random and each end is replaced by a new
prompt, so admission, prefix lookup and release are in it as well. One plan is always ahead.
"""

import gc
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.modelled_worker import ModelledSampling, ModelledWorker, StepCost
from bench.recording import Target, report
from scheduler.core.config import CoreConfig
from scheduler.core.decisions import Plan
from scheduler.core.events import Capacity, Request, StepResult
from scheduler.core.scheduler import Scheduler

PROMPT_TOKENS = 256
MEAN_OUTPUT_TOKENS = 256
BLOCK_SIZE = 16
LIMITS_US = {256: 200.0, 1024: 500.0}


@dataclass(frozen=True)
class Measured:
    """Averages over the steps of one load."""

    load: str
    num_decoding: int
    num_steps: int
    schedule_us: float
    apply_us: float
    p99_us: float
    """Schedule and apply together."""
    plan_bytes: float
    """Columns of a plan, without admissions."""
    plan_bytes_per_sequence: float


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the loop."""

    schedule_ns: int
    apply_ns: int
    plan_bytes: int


class Bench:
    """One replica, full of decoding sequences, one plan ahead."""

    def __init__(self, num_seqs: int, *, churns: bool) -> None:
        self._churns = churns
        self._random = np.random.default_rng(7)
        num_blocks = max(4096, num_seqs * 128)
        capacity = Capacity(num_blocks, BLOCK_SIZE, num_seqs, num_seqs + 4096, 1 << 20)
        self.scheduler = Scheduler(
            CoreConfig(
                hash_seed=b"bench", max_num_seqs=num_seqs, max_num_batched_tokens=num_seqs + 4096
            )
        )
        self.scheduler.attach("r", capacity)
        self._worker = ModelledWorker(capacity, StepCost(0.0, 0.0, 0.0))
        self._results: deque[StepResult] = deque()
        self._num_requests = 0
        for _ in range(num_seqs):
            self.submit()

    def submit(self) -> None:
        """One more request; prompt lengths differ, so that blocks fill at different steps."""
        self._num_requests += 1
        length = PROMPT_TOKENS + int(self._random.integers(0, BLOCK_SIZE))
        num_output = 1 + int(self._random.exponential(MEAN_OUTPUT_TOKENS))
        request = Request(
            router=1,
            sequence_id=self._num_requests,
            token_ids=self._random.integers(0, 32_000, length).astype(np.int32),
            num_prompt_tokens=length,
            max_tokens=(num_output if self._churns else 1 << 15),
            seed=self._num_requests,
            sampling=ModelledSampling(1 << 30),
        )
        self.scheduler.accept(request, 0.0)

    def step(self) -> Step:
        """Send a plan, then apply the result of the one before."""
        started = time.thread_time_ns()
        plan = self.scheduler.schedule("r", 0.0)
        schedule_ns = time.thread_time_ns() - started
        if plan is not None:
            self._results.append(self._worker.execute(plan)[0])
            if len(self._results) < 2:
                return Step(schedule_ns, 0, column_bytes(plan))
        result = self._results.popleft()
        started = time.thread_time_ns()
        outputs = self.scheduler.apply("r", result, 0.0)
        apply_ns = time.thread_time_ns() - started
        for _ in outputs.finished:
            self.submit()
        return Step(schedule_ns, apply_ns, 0 if plan is None else column_bytes(plan))


def column_bytes(plan: Plan) -> int:
    """Bytes of the plan's columns."""
    columns = (
        plan.retire,
        plan.append_slot,
        plan.append_index,
        plan.append_block,
        plan.chunk_slot,
        plan.chunk_start,
        plan.chunk_length,
        *(() if plan.decode is None else (plan.decode,)),
    )
    return sum(column.nbytes for column in columns)


def measure(num_seqs: int, num_steps: int, *, churns: bool) -> Measured:
    """Fill the replica, then time `num_steps` steps."""
    bench = Bench(num_seqs, churns=churns)
    while bench.scheduler.state().num_waiting:
        bench.step()
    for _ in range(64):
        bench.step()
    # As the scheduler process does: what is here now is not garbage.
    gc.collect()
    gc.freeze()
    steps = [bench.step() for _ in range(num_steps)]
    gc.unfreeze()
    schedule = np.array([step.schedule_ns for step in steps]) / 1000
    apply = np.array([step.apply_ns for step in steps]) / 1000
    num_bytes = float(np.mean([step.plan_bytes for step in steps]))
    return Measured(
        load="churn" if churns else "steady",
        num_decoding=num_seqs,
        num_steps=num_steps,
        schedule_us=round(float(schedule.mean()), 1),
        apply_us=round(float(apply.mean()), 1),
        p99_us=round(float(np.percentile(schedule + apply, 99)), 1),
        plan_bytes=round(num_bytes, 1),
        plan_bytes_per_sequence=round(num_bytes / num_seqs, 2),
    )


def main(
    seqs: Annotated[list[int] | None, typer.Option(help="Decoding at once; repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 1000,
    save: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
) -> None:
    """Times the scheduling core."""
    runs = [
        measure(num_seqs, steps, churns=churns)
        for churns in (False, True)
        for num_seqs in seqs or (1, 256, 1024)
    ]
    # The targets are about decoding; a thousand sequences of which four change at every step are
    # shown beside it.
    targets = [
        Target(f"{run.load} at {run.num_decoding}, µs", run.schedule_us + run.apply_us, limit)
        for run in runs
        if run.load == "steady" and (limit := LIMITS_US.get(run.num_decoding)) is not None
    ]
    report({f"{run.load} at {run.num_decoding}": asdict(run) for run in runs}, targets, save)


if __name__ == "__main__":
    typer.run(main)
