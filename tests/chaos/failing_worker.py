"""`python -m worker` whose step fails when a plan brings it a certain request.

    QUIRE_TEST_FAILS=5,6,7 QUIRE_TEST_FAILURE=memory python -m tests.chaos.failing_worker …

`memory`: the device is out of it, once. `error`: any exception, each time. `nan`: the logits of its
own row are not finite, each time. The request is known as in `poisoned_worker`.
"""

import os
from pathlib import Path

import numpy as np
import torch

from tests.chaos.poisoned_worker import holds
from worker.__main__ import app
from worker.host_runner import HostRunner
from worker.plans import BatchPlan, StepResult
from worker.sampler import RowMasks, Sampled, Sampler
from worker.step_state import SampledRows

TOKENS = "QUIRE_TEST_FAILS"
FAILURE = "QUIRE_TEST_FAILURE"
NOTE = "QUIRE_TEST_NOTE"
"""A file that is there once it has failed."""


def main() -> None:
    """Runs the worker with one part exchanged."""
    tokens = np.array(os.environ[TOKENS].split(","), np.int32)
    note, failure = Path(os.environ[NOTE]), os.environ[FAILURE]
    step, sample = HostRunner.step, Sampler.sample
    slots: set[int] = set()

    def failing_step(runner: HostRunner, plan: BatchPlan, wait_us: int = 0) -> StepResult:
        slots.difference_update(plan.retire.tolist(), (each.slot for each in plan.admit))
        slots.update(each.slot for each in plan.admit if holds(each.token_ids, tokens))
        if any(holds(admission.token_ids, tokens) for admission in plan.admit):
            if failure == "error":
                note.touch()
                raise RuntimeError("no kernel takes these tokens")
            if failure == "memory" and not note.exists():
                note.touch()
                raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return step(runner, plan, wait_us)

    def failing_sample(
        sampler: Sampler, logits: torch.Tensor, rows: SampledRows, masks: RowMasks | None = None
    ) -> Sampled:
        its_own = np.isin(rows.slots, list(slots))
        if failure == "nan" and its_own.any():
            note.touch()
            logits[torch.from_numpy(its_own)] = torch.nan
        return sample(sampler, logits, rows, masks)

    setattr(HostRunner, "step", failing_step)  # noqa: B010
    setattr(Sampler, "sample", failing_sample)  # noqa: B010
    app()


if __name__ == "__main__":
    main()
