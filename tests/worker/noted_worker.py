"""`python -m worker` on a device runner that says on standard output how it ends.

python -m tests.worker.noted_worker --model DIRECTORY --scheduler ADDRESS
"""

from collections.abc import Callable
from typing import Any

from kernels.ops import DEVICE_STEP_REFERENCE
from worker import runners
from worker.__main__ import app
from worker.device_runner import DeviceRunner
from worker.parallel import Group


def noted(method: Callable[[Any], None], said: str) -> Callable[[Any], None]:
    """The same, and a line when it is done."""

    def call(owner: Any) -> None:
        method(owner)
        buckets = owner.graph_buckets if isinstance(owner, DeviceRunner) else ""
        print(said, buckets, flush=True)

    return call


def main() -> None:
    """Runs the worker with its parts exchanged."""
    for owner, name, part in (
        (runners, "select_step", lambda *_: DEVICE_STEP_REFERENCE),
        (DeviceRunner, "close", noted(DeviceRunner.close, "closed with graphs")),
        (Group, "leave", noted(Group.leave, "left")),
    ):
        setattr(owner, name, part)
    app()


if __name__ == "__main__":
    main()
