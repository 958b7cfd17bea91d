"""Watches a load: the memory of what serves it, and what others take of the machine."""

import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from bench.compare_cpu.running import tree

INTERVAL_S = 1.0
QUIET_CORES = 0.1
"""Others may take so much before a figure is said to be disturbed."""


class Watch:
    """From entering until leaving, sampled every `INTERVAL_S` on a thread of its own.

    Attributes:
        peak_bytes: the most that the processes had together, pages that several share counted
            once (the kernel's proportional set sizes); 0 where the kernel does not say.
        others_cores: cores that everybody but them and us kept busy, on average.
    """

    def __init__(self, pid: int) -> None:
        """Watches this process with its descendants."""
        self.peak_bytes = 0
        self.others_cores = 0.0
        self._pid = pid
        self._cpu_s: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> "Watch":
        """Begins."""
        self._sample()
        self._began = time.monotonic()
        self._busy_s, self._ours_s = _busy_s(), sum(self._cpu_s.values())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends, and sums up."""
        self._done.set()
        self._thread.join()
        self._sample()
        ours = sum(self._cpu_s.values()) - self._ours_s
        busy = _busy_s() - self._busy_s
        self.others_cores = max(0.0, busy - ours) / (time.monotonic() - self._began)

    def _run(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        """Of one that has ended, its processor time stays as it was last seen."""
        served = tree(self._pid)
        self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(each.pid) for each in served))
        for process in [*served, psutil.Process(os.getpid())]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._cpu_s[process.pid] = times.user + times.system


def others_cores(seconds: float, pid: int) -> float:
    """What others do while we do nothing."""
    with Watch(pid) as watch:
        time.sleep(seconds)
    return watch.others_cores


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _busy_s() -> float:
    """Processor time of the whole machine; what the host took away (steal) was others', too."""
    times = psutil.cpu_times()
    steal: float = getattr(times, "steal", 0.0)
    return times.user + times.nice + times.system + times.irq + times.softirq + steal
