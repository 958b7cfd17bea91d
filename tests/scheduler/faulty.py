"""`python -m tests.scheduler.faulty METHOD NUMBER ...`: a scheduler whose core has a defect.

It raises when this method of the core is called for the NUMBERth time since a request first came.
The rest is the command line of a scheduler.
"""

import sys
from typing import Any

from protos.command_line import run
from scheduler.__main__ import app
from scheduler.core.scheduler import Scheduler


def break_core(method: str, number: int) -> None:
    accept, whole = Scheduler.accept, getattr(Scheduler, method)
    num_requests = num_calls = 0

    def accepted(*arguments: Any) -> Any:
        nonlocal num_requests
        num_requests += 1
        return accept(*arguments)

    def broken(*arguments: Any, **named: Any) -> Any:
        nonlocal num_calls
        num_calls += num_requests > 0 or method == "accept"
        if num_calls == number:
            raise ValueError("a defect")
        return whole(*arguments, **named)

    for name, replacement in (("accept", accepted), (method, broken)):
        setattr(Scheduler, name, replacement)


if __name__ == "__main__":
    break_core(sys.argv[1], int(sys.argv[2]))
    del sys.argv[1:3]
    run(app)
