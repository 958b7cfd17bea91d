"""How long each phase of a start takes, for people."""

import os
import time
from pathlib import Path

_STAT = Path("/proc/self/stat")
_START_FIELD = 19  # "starttime", counted from the one behind the command's name


class Phases:
    """Names what has passed since the last name; the first phase begins with the process.

    Attributes:
        seconds: of each phase, by name, in order.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter() - process_age_s()

    def end(self, name: str) -> None:
        """A phase of this name is over, and another begins."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    def __str__(self) -> str:
        return f"{sum(self.seconds.values()):.1f} s: {phases(self.seconds)}"


def phases(seconds: dict[str, float]) -> str:
    """One line for people: what took how long."""
    return ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items())


def process_age_s() -> float:
    """Seconds since this process was created; 0 where the system does not tell."""
    try:
        behind_name = _STAT.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    created = int(behind_name[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - created)
