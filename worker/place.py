"""Where this process stands among the ranks of its replica: what torchrun says, read here alone."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of a replica; by default the only one.

    Attributes:
        rank: 0 to world_size - 1; rank 0 answers the scheduler.
        world_size: ranks there are.
        local_rank: which of this machine's devices is its own.
        local_world_size: ranks on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> "Place | None":
        """What torchrun says; None without it."""
        if "TORCHELASTIC_RUN_ID" not in environment:
            return None
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(environment[name]) for name in names))

    @property
    def role(self) -> str:
        """What the process calls itself in its log."""
        return "worker" if self.world_size == 1 else f"worker[{self.rank}]"


SOLE = Place()


def end_with_parent() -> None:
    """Asks the kernel to end this process with the one that started it, where it can.

    torchrun gives each rank a session of its own, which no signal to torchrun's group reaches.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
