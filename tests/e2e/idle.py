"""When a stack has nothing left to do."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 30.0


def idle_state(read_state: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The scheduler's totals once nothing runs; AssertionError after half a minute.

    A client has its last token before the plan ahead of it has come back, which holds the blocks.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        state = read_state()
        left = (state["running"], state["waiting"], state["blocks"]["used"])
        if left == (0, 0, 0):
            return state
        assert time.monotonic() < deadline, f"still running, waiting, blocks used: {left}"
        time.sleep(0.05)
