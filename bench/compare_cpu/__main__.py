"""Quire and its peers on a machine without a GPU: the same requests to each, one after the other.

    python -m bench.compare_cpu --output result.json \\
        --quire "int4=" --quire "float32=--quantization none" \\
        --llama-server PATH/llama-server --llama "int8 Q8_0=--model FILE.gguf" \\
        --openvino-python PATH/python --openvino "int8=--model DIR" \\
        --vllm-python PATH/python --vllm "bfloat16=DIR --dtype bfloat16"

A peer whose program is not given is left out. docs/performance.md says how each is installed. Every
server is started with as many threads, gets the same prompts from one load generator (ours, over
OpenAI's streaming HTTP), and has ended before the next one starts.

A mode's name begins with what its matrices are read in: float32, bfloat16, int8 or int4.
"""

import functools
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.compare_cpu import engines
from bench.compare_cpu.engines import Engine, Mode
from bench.compare_cpu.limits import EACH_S, Limits
from bench.compare_cpu.loads import CASES, TINY, Case, Sample, measure
from bench.compare_cpu.running import EngineFailed, Running, running, version
from bench.compare_cpu.tables import Row, as_json, in_words, ratios, table
from bench.compare_cpu.watch import QUIET_CORES, others_cores
from bench.recording import save
from quire.models import resolve

_LOOK_S = 2.0
_DEFAULT_MODE = "float32=--quantization none --dtype float32"
_Modes = Annotated[list[str] | None, typer.Option(metavar="NAME=FLAGS", help="Repeatable.")]
_Program = Annotated[Path | None, typer.Option(exists=True, dir_okay=False)]


def main(
    model: Annotated[
        str, typer.Option(help="Of modes of Quire that name none; the limits are its.")
    ] = "smollm2",
    quire: _Modes = None,
    llama_server: _Program = None,
    llama: _Modes = None,
    openvino_python: _Program = None,
    openvino: _Modes = None,
    vllm_python: _Program = None,
    vllm: _Modes = None,
    vllm_preload: Annotated[str | None, typer.Option(help="vLLM's LD_PRELOAD.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Compute threads of every system.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Medians of so many are shown.")] = 3,
    load: Annotated[list[int] | None, typer.Option(help="Only these, counted from 0.")] = None,
    tiny: Annotated[bool, typer.Option(help="Tiny loads: that it runs.")] = False,
    log_dir: Annotated[Path | None, typer.Option(help="Keep what servers print here.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
) -> None:
    """Measures and prints: tables, then ratios of Quire's best mode and the best peer's."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    make_llama = functools.partial(engines.llama, threads=threads)
    make_openvino = functools.partial(engines.openvino, threads=threads)
    make_vllm = functools.partial(engines.vllm, cores=cores, preload=vllm_preload)
    cases = _cases(TINY if tiny else CASES, load)
    with tempfile.TemporaryDirectory(prefix="quire-compare-") as scratch:
        make_quire = functools.partial(engines.quire, threads=threads, run_dir=Path(scratch))
        asked = [
            *(make_quire(model, Mode.parse(text)) for text in quire or [_DEFAULT_MODE]),
            *_peers("llama.cpp", "llama", "llama-server", llama_server, llama, make_llama),
            *_peers(
                "OpenVINO GenAI",
                "openvino",
                "openvino-python",
                openvino_python,
                openvino,
                make_openvino,
            ),
            *_peers("vLLM", "vllm", "vllm-python", vllm_python, vllm, make_vllm),
        ]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what we started, too
        _say_how_quiet(os.getpid())
        limits = Limits.measured(resolve(model, _say).path, threads, 0.1 if tiny else EACH_S)
        comparison = Comparison(cases, repeats, limits, log_dir or Path(scratch))
        try:
            for engine in asked:
                comparison.add(engine)
        finally:  # what was measured before Ctrl-C is worth keeping
            comparison.show()
            if output is not None:
                save(comparison.figures(), [], output)
    raise typer.Exit(1 if comparison.failures else 0)


class Comparison:
    """Engines, one after the other, and what became of them."""

    def __init__(self, cases: Sequence[Case], repeats: int, limits: Limits, log_dir: Path) -> None:
        self._cases, self._repeats, self._limits, self._log_dir = cases, repeats, limits, log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        self._rows: list[Row] = []
        self._systems: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}

    def add(self, engine: Engine) -> None:
        """Starts it, gives it every load, ends it. That it fails is noted, and said."""
        _say(f"-- {engine.name}")
        self._systems[engine.name] = {
            "version": version(engine),
            "command": " ".join(engine.command),
        }
        samples: dict[Case, list[Sample]] = {}
        try:
            with running(engine, self._log_dir / f"{engine.name.replace(' ', '-')}.log") as server:
                _say(f"answers after {server.started_s:.0f} s")
                _say_how_quiet(server.pid)
                self._systems[engine.name]["started_s"] = server.started_s
                self._measure(server, samples)
        except EngineFailed as error:
            self.failures[engine.name] = str(error)
            _say(f"FAILED: {error}")
        middles = {case: Sample.middle(runs) for case, runs in samples.items()}
        self._rows.append(Row(engine, middles))

    def _measure(self, server: Running, samples: dict[Case, list[Sample]]) -> None:
        """Prompts are new in every repeat of every load, and the same for every engine."""
        for repeat in range(self._repeats):
            for number, case in enumerate(self._cases):
                sample = measure(case, server, seed=100 * repeat + number)
                samples.setdefault(case, []).append(sample)
                _say(f"{case.name}: {sample.output_tokens_per_s:.1f} tokens/s")

    def show(self) -> None:
        """Prints what there is."""
        finished = {case for row in self._rows for case in row.middles}
        for case in self._cases:
            if case in finished:
                _say("\n" + table(case, self._rows, self._limits))
        best = ratios(self._rows, self._cases)
        _say("\n" + in_words("Quire's best mode over the best peer", best))
        floats = ratios(self._rows, self._cases, "float32")
        _say("\n" + in_words("the same in float32 alone", floats))
        for name, reason in self.failures.items():
            _say(f"FAILED: {name}: {reason}")

    def figures(self) -> dict[str, Any]:
        """What is kept."""
        return {
            "repeats": self._repeats,
            "systems": self._systems,
            "failures": self.failures,
            **as_json(self._rows, self._cases, self._limits),
        }


def _peers(
    system: str,
    option: str,
    program_option: str,
    program: Path | None,
    modes: Sequence[str] | None,
    make: Callable[[Path, Mode], Engine],
) -> list[Engine]:
    """A peer's modes; none if its program is not here, which is said."""
    if program is None and not modes:
        _say(f"{system} is left out: no --{program_option}")
        return []
    if program is None or not modes:
        raise typer.BadParameter(f"--{program_option} and --{option} go together")
    return [make(program, Mode.parse(text)) for text in modes]


def _cases(cases: Sequence[Case], numbers: Sequence[int] | None) -> Sequence[Case]:
    for number in numbers or ():
        if not 0 <= number < len(cases):
            raise typer.BadParameter(f"load is {number}; it must be 0 to {len(cases) - 1}")
    return cases if not numbers else [cases[number] for number in numbers]


def _say_how_quiet(pid: int) -> None:
    cores = others_cores(_LOOK_S, pid)
    verdict = "the machine is quiet" if cores <= QUIET_CORES else "THE MACHINE IS NOT QUIET"
    _say(f"{verdict}: others keep {cores:.2f} cores busy")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
