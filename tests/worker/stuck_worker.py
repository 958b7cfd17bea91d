"""`python -m worker` on a device that never finishes a step once it serves.

    python -m tests.worker.stuck_worker --model DIRECTORY --scheduler ADDRESS

Its device is the host behind a lane; what is launched after the start never arrives. It takes a
silent transport for lost after seconds.
"""

import threading
from collections.abc import Sequence
from typing import Any

import torch

from kernels.ops import DEVICE_STEP_REFERENCE
from worker import link_process, process, runners
from worker.__main__ import app
from worker.lane import Array, Fetched, HostLane

PATIENCE_S = 0.5
SILENCE_S = 3.0
END_S = 1


class StuckLane(HostLane):
    """As that of a GPU whose kernel spins for ever."""

    serves = False
    is_stuck = False

    def fetch(self, outcome: Sequence[torch.Tensor]) -> Fetched:
        """`Lane.fetch`."""
        self.is_stuck = self.serves
        return NeverThere() if self.serves else super().fetch(outcome)

    def drain(self) -> None:
        """`Lane.drain`."""
        if self.is_stuck:
            threading.Event().wait()


class NeverThere:
    """`Fetched`."""

    def wait(self) -> list[Array]:
        """Does not return."""
        threading.Event().wait()
        raise AssertionError

    def device_us(self) -> tuple[int, int]:
        """Is not asked."""
        raise AssertionError


def main() -> None:
    """Runs the worker with its parts exchanged."""
    process_serve = process._serve

    def serve(*arguments: Any) -> Any:
        StuckLane.serves = True
        return process_serve(*arguments)

    for module, name, part in (
        (runners, "select_step", lambda *_: DEVICE_STEP_REFERENCE),
        (runners, "make_lane", lambda _: StuckLane()),
        (process, "_PATIENCE_S", PATIENCE_S),
        (process, "_serve", serve),
        (link_process, "SILENCE_S", SILENCE_S),
        (link_process, "END_S", END_S),
    ):
        setattr(module, name, part)
    app()


if __name__ == "__main__":
    main()
