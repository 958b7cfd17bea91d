"""The loads, and what an engine made of one."""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.compare_cpu.running import EngineFailed, Running
from bench.compare_cpu.watch import Watch
from quire.bench.load import Load, run_load
from quire.bench.report import Report
from quire.errors import RequestFailed


@dataclass(frozen=True, slots=True)
class Case:
    """Requests of one shape.

    Attributes:
        concurrency: in flight together.
        count: in all.
        shared_len: tokens that all prompts of a run begin with.
        input_len: tokens of a prompt, those among them.
    """

    concurrency: int
    count: int
    input_len: int
    output_len: int
    shared_len: int = 0

    @property
    def name(self) -> str:
        """For people."""
        own = self.input_len - self.shared_len
        prompt = f"{self.shared_len} shared + {own} own" if self.shared_len else f"{own}"
        return f"{prompt} in, {self.output_len} out, {self.concurrency} at once"


CASES = (
    Case(1, 4, 256, 128),
    Case(8, 24, 256, 128),
    Case(32, 64, 256, 128),
    Case(8, 32, 1088, 32, shared_len=1024),
)
TINY = (Case(1, 2, 16, 8), Case(4, 8, 48, 8, shared_len=32))
"""They show that everything runs, and measure nothing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a case, or the middle of several.

    Attributes:
        ttft_ms: from sending to the first text, median.
        itl_ms: from one piece of text to the next, median.
        tpot_ms: per token after the first, however many came in a piece; median of requests.
        peak_bytes: memory of all its processes together.
        others_cores: kept busy by what has no part in it.
    """

    output_tokens_per_s: float
    ttft_ms: float
    itl_ms: float
    tpot_ms: float
    peak_bytes: int
    others_cores: float

    @classmethod
    def middle(cls, samples: Sequence["Sample"]) -> "Sample":
        """Medians; of memory and of others' work the most."""
        columns: dict[str, Any] = {
            name: [asdict(sample)[name] for sample in samples] for name in cls.__slots__
        }
        most = {name: max(columns.pop(name)) for name in ("peak_bytes", "others_cores")}
        return cls(**{name: statistics.median(each) for name, each in columns.items()}, **most)


def measure(case: Case, server: Running, seed: int) -> Sample:
    """Sends it; prompts are drawn anew from the seed, and one request goes ahead of the clock.

    Raises:
        EngineFailed: a request failed, or the tokens counted are not those that were asked for.
    """
    load = Load(
        model=server.model,
        num_prompts=case.count,
        input_len=case.input_len,
        shared_len=case.shared_len,
        output_len=case.output_len,
        seed=seed,
        max_concurrency=case.concurrency,
    )
    try:
        with Watch(server.pid) as watch:
            run = asyncio.run(run_load(server.endpoint, load, lambda tokens: None))
    except RequestFailed as error:
        raise EngineFailed(str(error)) from error
    report = Report.of(run)
    if errors := {trace.error for trace in run.traces if trace.error}:
        raise EngineFailed(f"{report.failed} of {case.count} requests failed: {min(errors)}")
    counted = (report.input_tokens, report.output_tokens)
    asked = (case.count * case.input_len, case.count * case.output_len)
    if counted != asked:
        raise EngineFailed(f"it counts {counted} tokens in and out; {asked} were asked for")
    if report.ttft is None or report.itl is None or report.tpot is None:
        raise EngineFailed("no request had two pieces of text")
    return Sample(
        output_tokens_per_s=report.output_tokens_per_s,
        ttft_ms=report.ttft.p50_ms,
        itl_ms=report.itl.p50_ms,
        tpot_ms=report.tpot.p50_ms,
        peak_bytes=watch.peak_bytes,
        others_cores=watch.others_cores,
    )
