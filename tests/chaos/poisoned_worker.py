"""`python -m worker` whose process ends, as if killed, when a plan brings it a certain request.

    QUIRE_TEST_POISON=5,6,7 python -m tests.chaos.poisoned_worker --model DIRECTORY …

The request is known by tokens that stand side by side in its prompt. What a kernel that crashes on
some input would do, without a word of it in the worker itself.
"""

import os
import signal

import numpy as np

from worker.__main__ import app
from worker.host_runner import HostRunner
from worker.plans import BatchPlan, Int32Column, StepResult

POISON = "QUIRE_TEST_POISON"


def main() -> None:
    """Runs the worker with one part exchanged."""
    poison = np.array(os.environ[POISON].split(","), np.int32)
    step = HostRunner.step

    def deadly_step(runner: HostRunner, plan: BatchPlan, wait_us: int = 0) -> StepResult:
        if any(holds(admission.token_ids, poison) for admission in plan.admit):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(runner, plan, wait_us)

    setattr(HostRunner, "step", deadly_step)  # noqa: B010
    app()


def holds(tokens: Int32Column, poison: Int32Column) -> bool:
    """Whether they stand side by side in these."""
    if len(tokens) < len(poison):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(poison))
    return bool((windows == poison).all(axis=1).any())


if __name__ == "__main__":
    main()
