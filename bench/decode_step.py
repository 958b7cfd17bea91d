"""Where a millisecond of a decode step goes.

The same requests are sent twice through the whole stack, for few tokens and for many: what the
second takes longer is decode steps alone. Nothing is drafted. The worker says what it did with its
time; beside it, the other processes take time of the same processors.

    python -m bench.decode_step --threads 2
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.mixed_requests import uniform_requests
from bench.recording import report
from bench.served import Served, StackUnderTest
from quire.models import resolve

INPUT_LEN = 256
OUTPUT_LENS = (16, 144)


def _between(few: Served, many: Served) -> dict[str, dict[str, float]]:
    """Milliseconds of one of the steps that the second has more."""
    steps = many.steps - few.steps
    took = 1e3 * (many.duration_s - few.duration_s) / steps
    worker = {
        part: 1e3 * (seconds - few.parts_s[part]) / steps for part, seconds in many.parts_s.items()
    }
    beside = {
        process: (many.cpu_ms[process] * many.steps - few.cpu_ms[process] * few.steps) / steps
        for process in many.cpu_ms
        if process != "worker"
    }
    worker["transport, and the rest of its loop"] = took - sum(worker.values())
    return {"worker, ms": {"step": took, **worker}, "beside it, ms of a processor": beside}


def main(
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="The shortest of so many is told.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Write figures and machine as JSON.")] = None,
) -> None:
    """Prints a table for one sequence and one for 32; a minute."""
    model = resolve("smollm2", lambda message: None)
    stack = StackUnderTest(model, threads, speculative_ngram="off")
    figures: dict[str, Any] = {}
    try:
        stack.measure(uniform_requests(1, input_len=16, output_len=4, seed=0), 1)
        for batch in (1, 32):
            found = []
            for seed in range(rounds):
                requests = (
                    uniform_requests(
                        batch,
                        input_len=INPUT_LEN,
                        output_len=each,
                        seed=1000 * batch + 2 * seed + k,
                    )
                    for k, each in enumerate(OUTPUT_LENS)
                )
                found.append(_between(*(stack.measure(each, batch) for each in requests)))
            figures[f"{batch} at once"] = min(found, key=lambda one: one["worker, ms"]["step"])
    finally:
        stack.close()
    report({"threads": threads, "rounds": rounds, **figures}, (), save)


if __name__ == "__main__":
    typer.run(main)
