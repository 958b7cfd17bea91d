"""What a run felt like: rates, and percentiles of four latencies.

TTFT: sent to first text. ITL: between pieces of text. TPOT: time per output token after the first,
per request. E2EL: sent to end. Requests that failed count as failed and nowhere else.
"""

import dataclasses
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quire.bench.load import Run, Trace
from quire.version import __version__

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Latency | None":
        """None of nothing."""
        if not seconds:
            return None
        ms = np.asarray(seconds) * 1000.0
        return cls(float(ms.mean()), *(float(value) for value in np.percentile(ms, PERCENTILES)))


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one run."""

    completed: int
    failed: int
    duration_s: float
    max_in_flight: int
    requests_per_s: float
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft: Latency | None
    itl: Latency | None
    tpot: Latency | None
    e2el: Latency | None

    @classmethod
    def of(cls, run: Run) -> "Report":
        """Sums up a run."""
        done = [trace for trace in run.traces if trace.error is None]
        input_tokens = sum(trace.num_prompt_tokens for trace in done)
        output_tokens = sum(trace.num_output_tokens for trace in done)
        return cls(
            completed=len(done),
            failed=len(run.traces) - len(done),
            duration_s=run.duration_s,
            max_in_flight=run.max_in_flight,
            requests_per_s=len(done) / run.duration_s,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            output_tokens_per_s=output_tokens / run.duration_s,
            total_tokens_per_s=(input_tokens + output_tokens) / run.duration_s,
            ttft=Latency.of(
                [trace.arrivals[0] - trace.sent_at for trace in done if trace.arrivals]
            ),
            itl=Latency.of([gap for trace in done for gap in np.diff(trace.arrivals).tolist()]),
            tpot=Latency.of([_per_token_s(trace) for trace in done if _has_second_token(trace)]),
            e2el=Latency.of([trace.ended_at - trace.sent_at for trace in done]),
        )


def _has_second_token(trace: Trace) -> bool:
    return len(trace.arrivals) > 1 and trace.num_output_tokens > 1


def _per_token_s(trace: Trace) -> float:
    return (trace.arrivals[-1] - trace.arrivals[0]) / (trace.num_output_tokens - 1)


def as_json(run: Run, report: Report, target: str) -> dict[str, Any]:
    """Everything needed to know what was measured, where, and how to do it again."""
    return {
        "taken_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(["quire", *sys.argv[1:]]),
        "quire": __version__,
        "target": target,
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "load": dataclasses.asdict(run.load),
        "results": dataclasses.asdict(report),
        "errors": sorted({trace.error for trace in run.traces if trace.error}),
    }


def cpu_name() -> str:
    """The processor, for people."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
