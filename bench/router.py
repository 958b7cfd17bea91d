"""What a router costs: processor time per token of 256 streams, and what it is spent on.

The router is the real process. Behind it is a gRPC peer that answers at once, before it processes
that read 256 streamed chats over HTTP; each is a process of its own. At a pace that one core can
keep, every token is an event of its own, so processor time per token says how many tokens a second
one core serves. Flat out, the peer sends as fast as it is read: tokens coalesce where the router
falls behind, and the rate is what leaves. The baseline is a server that only writes ready-made
events to as many connections: what uvloop and the kernel take, whatever a router does.

    python -m bench.router                # at a pace, flat out, and the baseline
    python -m bench.router --profile      # and by module, from a run under cProfile
"""

import contextlib
import json
import os
import pstats
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from bench.instant_scheduler import NAME
from bench.recording import Target, report
from quire.models import resolve

TOKENS_PER_S_PER_CORE = 20_000
"""What was promised, at one event per token."""

WARM_S = 2.0
READY_S = 60.0
READER_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Counts:
    """What has happened so far."""

    at: float
    cpu_s: float
    """Of the server, user and system."""
    events: int
    reads: int
    """Times a client found something to read: writes that met in the kernel are one."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What happened between two counts."""

    events_per_s: float
    us_per_event: float
    """Processor time of the server."""
    load: float
    """Of one core."""
    events_per_read: float
    tokens_per_event: float

    @property
    def tokens_per_s_per_core(self) -> float:
        """What one core would serve if it did nothing else."""
        return 1e6 * self.tokens_per_event / self.us_per_event


class Process:
    """A child whose first lines are awaited; ended with the context."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            text=True,
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.send_signal(signal.SIGTERM)
        self.popen.communicate(timeout=60)

    def line(self) -> str:
        """What it says next."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self.popen.args!r} ended")
        return line

    def ask(self) -> dict[str, int]:
        """The answer of a reader to a line."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()
        counts: dict[str, int] = json.loads(self.line())
        return counts

    def cpu_s(self) -> float:
        """Processor time so far, to the nanosecond; the clock is `clock_getcpuclockid`'s."""
        return time.clock_gettime((~self.popen.pid << 3) | 2)


class Readers:
    """So many streams, read by a few processes."""

    def __init__(self, port: int, streams: int) -> None:
        shares = [
            streams // READER_PROCESSES + (index < streams % READER_PROCESSES)
            for index in range(READER_PROCESSES)
        ]
        self._on_end = contextlib.ExitStack()
        self._processes = [
            self._on_end.enter_context(
                Process(
                    *("-m", "bench.event_streams", "--port", str(port)),
                    *("--streams", str(share), "--model", NAME),
                )
            )
            for share in shares
        ]

    def __enter__(self) -> "Readers":
        for process in self._processes:
            process.line()
        return self

    def __exit__(self, *_: object) -> None:
        self._on_end.close()

    def counts(self, server: Process) -> Counts:
        """Of all, now."""
        at, cpu_s = time.perf_counter(), server.cpu_s()
        each = [process.ask() for process in self._processes]
        return Counts(
            at=at,
            cpu_s=cpu_s,
            events=sum(one["events"] for one in each),
            reads=sum(one["reads"] for one in each),
        )


@contextlib.contextmanager
def router(
    model: Path, steps_per_s: float | None, profile: Path | None = None
) -> Iterator[tuple[Process, int]]:
    """A router before a peer at that pace, ready, and its port."""
    pace = () if steps_per_s is None else ("--steps-per-s", str(steps_per_s))
    with Process("-m", "bench.instant_scheduler", "--model", str(model), *pace) as peer:
        profiled = () if profile is None else ("-m", "cProfile", "-o", str(profile))
        with Process(
            *profiled,
            *("-m", "router", "--model", str(model), "--scheduler", peer.line()),
            *("--served-model-name", NAME, "--port", "0", "--grpc-port", "0"),
            *("--drain-timeout", "0"),
        ) as process:
            ready = json.loads(process.line().removeprefix("quire-ready "))
            deadline = time.monotonic() + READY_S
            while httpx.get(f"{ready['address']}/ready").status_code != 200:
                if time.monotonic() > deadline:
                    raise RuntimeError("the router does not become ready")
                time.sleep(0.1)
            yield process, int(ready["address"].rpartition(":")[2])


@contextlib.contextmanager
def bare_writer(steps_per_s: float) -> Iterator[tuple[Process, int]]:
    """The baseline, and its port."""
    with Process("-m", "bench.bare_writer", "--steps-per-s", str(steps_per_s)) as process:
        yield process, int(process.line())


def measure(server: Process, port: int, streams: int, seconds: float) -> Measured:
    """Reads so many streams for so long."""
    is_router = "router" in server.popen.args  # type: ignore[operator]
    with Readers(port, streams) as readers:
        time.sleep(WARM_S)
        first_tokens = _tokens(port) if is_router else 0.0
        first = readers.counts(server)
        time.sleep(seconds)
        last_tokens = _tokens(port) if is_router else 0.0
        last = readers.counts(server)
    events, elapsed_s = last.events - first.events, last.at - first.at
    cpu_s = last.cpu_s - first.cpu_s
    return Measured(
        events_per_s=events / elapsed_s,
        us_per_event=1e6 * cpu_s / events,
        load=cpu_s / elapsed_s,
        events_per_read=events / (last.reads - first.reads),
        tokens_per_event=(last_tokens - first_tokens) / events if is_router else 1.0,
    )


def _tokens(port: int) -> float:
    """Output tokens that the router has had from its scheduler."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    [line] = [
        line for line in text.splitlines() if line.startswith("vllm:generation_tokens_total{")
    ]
    return float(line.rpartition(" ")[2])


def profile_of(model: Path, steps_per_s: float, streams: int, seconds: float) -> dict[str, float]:
    """Share of the router's Python time by module, of a run under cProfile.

    Calls into C count for the module that calls, and so `transport.write` with the kernel's `send`
    for uvicorn's protocol. What uvloop does by itself, waiting included, is one figure to cProfile
    and left out; so are the modules that load the model, and what is none of ours or the servers'.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "profile")
        with router(model, steps_per_s, path) as (process, port):
            measure(process, port, streams, seconds)
        stats: Any = pstats.Stats(str(path))
    shares: dict[str, float] = {}
    for (file, _, _), (_, _, own_s, _, callers) in stats.stats.items():
        if file != "~":
            shares[_module(file)] = shares.get(_module(file), 0.0) + own_s
            continue
        for (caller_file, _, _), (_, _, from_there_s, _) in callers.items():
            module = _module(caller_file)
            shares[module] = shares.get(module, 0.0) + from_there_s
    shares = {
        name: share
        for name, share in shares.items()
        if name.startswith(_SERVING) and name not in _NOT_SERVING
    }
    total = sum(shares.values())
    told = {
        name: share / total
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
        if share / total > _LEAST_SHARE
    }
    return told | {f"those of less than {_LEAST_SHARE:g} together": 1 - sum(told.values())}


_LEAST_SHARE = 0.005
_SERVING = ("router", "gateway", "uvicorn", "starlette", "grpc", "google", "asyncio")
_NOT_SERVING = (
    *("asyncio.runners", "uvicorn.server"),  # cProfile counts the loop, waiting too, for its caller
    *("gateway.model", "gateway.tokenizer", "gateway.vocabulary"),  # load the model
)


def _module(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    here = Path(__file__).resolve().parents[1].parts
    if parts[: len(here)] == here and ".venv" not in parts:
        return ".".join(parts[len(here) :])
    for root in ("site-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"):
        if root in parts:
            parts = parts[parts.index(root) + 1 :]
    return ".".join(parts)


def main(
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 256,
    steps_per_s: Annotated[float, typer.Option(help="Pace of the peer.")] = 40.0,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
    profile: Annotated[bool, typer.Option(help="By module, too.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write figures and machine as JSON.")] = None,
) -> None:
    """Measures and prints; about a minute a round."""
    model = resolve("smollm2", lambda message: None).path
    runs: dict[str, list[Measured]] = {}
    for _ in range(rounds):
        for name, server in (
            ("router at a pace", router(model, steps_per_s)),
            ("router flat out", router(model, None)),
            ("bare writer at the pace", bare_writer(steps_per_s)),
        ):
            with server as (process, port):
                measured = measure(process, port, streams, seconds)
            runs.setdefault(name, []).append(measured)
    figures: dict[str, Any] = {
        name: {
            what: statistics.median(getattr(run, what) for run in of_name)
            for what in (
                "tokens_per_s_per_core",
                "us_per_event",
                "events_per_s",
                "load",
                "events_per_read",
                "tokens_per_event",
            )
        }
        for name, of_name in runs.items()
    }
    paced, bare = figures["router at a pace"], figures["bare writer at the pace"]
    figures["router over bare writer, processor time per event"] = (
        paced["us_per_event"] / bare["us_per_event"]
    )
    if profile:
        figures["share of the router's time"] = profile_of(model, steps_per_s / 2, streams, seconds)
    target = Target(
        f"tokens/s per core at {streams} streams",
        paced["tokens_per_s_per_core"],
        TOKENS_PER_S_PER_CORE,
        at_least=True,
    )
    head = {"streams": streams, "steps_per_s": steps_per_s, "seconds": seconds, "rounds": rounds}
    report({**head, **figures}, [target], save)


if __name__ == "__main__":
    typer.run(main)
