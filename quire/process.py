"""One child process: started so that it cannot outlive us, heard, and ended with certainty.

A Quire process says on standard output, once, that it serves (`quire-ready {json}`) and logs to
standard error. Each child leads a session of its own: Ctrl-C in a terminal reaches only the
supervisor, which ends the children in order, and a signal to the group reaches whatever the child
started itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import site
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_PREFIX = "quire-ready "
LINE_LIMIT_BYTES = 1 << 20

_LAUNCHER = Path(__file__).with_name("launch.py")

_PLAIN_ERRORS = {"TYPER_USE_RICH": "0"}
"""A wrong flag is then one line, and not a box of several."""

LogSink = Callable[[str, str], None]
"""Called with a child's name and one line that it wrote."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run."""

    name: str
    """Unique in the stack: "worker-0"."""
    role: str
    """"router", "scheduler" or "worker"."""
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    """Added to ours. What must not show in `ps` goes here."""
    stop_signal: signal.Signals = signal.SIGTERM
    """What asks it to drain and end."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What a process said when it began to serve."""

    pid: int
    """Its own: what was started may be what starts it."""
    address: str
    metrics: str | None
    restart_arguments: tuple[str, ...] = ()
    """What it asks to be started with in addition, should it have to be started again."""


def warning(spec: ChildSpec, text: str) -> str:
    """A line about a child in the format of its own log lines."""
    return log_line(spec.role, "warning", text)


def info(spec: ChildSpec, text: str) -> str:
    """The same about what is as it should be."""
    return log_line(spec.role, "info", text)


def log_line(role: str, level: str, text: str) -> str:
    """As a process of that role would write it, now."""
    return f"{time.strftime('%H:%M:%S')} {role} {level} {text}"


def quire_command(role: str, *arguments: str) -> tuple[str, ...]:
    """The command line of `python -m ROLE`.

    `-P` keeps the working directory off the import path: a folder `worker/` there is not ours.
    """
    return (sys.executable, "-P", "-m", role, *arguments)


def quire_environment() -> dict[str, str]:
    """This environment, with the tree that holds this package on the import path."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    root = str(Path(__file__).resolve().parents[1])
    if root not in site.getsitepackages():
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else root
    return environment


class ChildProcess:
    """A running child. Make it with `start`, on the thread that shall keep it alive.

    The kernel ties a child to the thread that started it, not to the process: were that thread to
    end, so would the child.
    """

    def __init__(
        self,
        spec: ChildSpec,
        process: asyncio.subprocess.Process,
        outputs: list[asyncio.StreamReader],
        log: LogSink,
    ) -> None:
        self.spec = spec
        self.pid = process.pid
        self.started_at = time.time()
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[tuple[Ready, ...]] = loop.create_future()
        """Resolved by the ready line, or that of its last rank; cancelled if it ends before."""
        self._ready_ranks: dict[int, Ready] = {}
        self.exited: asyncio.Task[int] = asyncio.create_task(self._run(process, outputs))
        """The exit code, negative for a signal; done when its output has been read, too."""
        self._log = log
        self._tail: deque[str] = deque(maxlen=50)
        self._error: str | None = None
        """Why it cannot start, not logged so far: it may be told as the stack's own error."""

    @classmethod
    async def start(cls, spec: ChildSpec, log: LogSink) -> "ChildProcess":
        """Starts it; returns at once."""
        stdout, stdout_end = await _open_pipe()
        stderr, stderr_end = await _open_pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", str(_LAUNCHER), str(os.getpid())),
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout_end,
                stderr=stderr_end,
                env=quire_environment() | _PLAIN_ERRORS | dict(spec.environment),
                start_new_session=True,
            )
        finally:
            os.close(stdout_end)
            os.close(stderr_end)
        return cls(spec, process, [stdout, stderr], log)

    def last_words(self) -> str:
        """Its `error: ...` line without the word, or the last line it wrote, or nothing."""
        if self._error is not None:
            return self._error[len("error: ") :]
        return next((line for line in reversed(self._tail) if line.strip()), "")

    def log_error(self) -> None:
        """Logs its `error: ...` line, if it wrote one. Whoever tells it otherwise need not."""
        if self._error is not None:
            self._log(self.spec.name, self._error)

    async def stop(self, timeout_s: float) -> None:
        """Asks it to drain and end; after `timeout_s`, ends it."""
        self._signal(self.spec.stop_signal)
        done, _ = await asyncio.wait([self.exited], timeout=timeout_s)
        if not done:
            self._log(self.spec.name, warning(self.spec, f"not gone after {timeout_s:g} s: killed"))
            await self.kill()

    def hang_up(self) -> None:
        """SIGHUP as soon as it serves: before, it would end of it, and reads its files anyway."""
        if not self.ready.done():
            self.ready.add_done_callback(lambda _: self.hang_up())
        elif not self.ready.cancelled():
            self._signal(signal.SIGHUP)

    async def kill(self) -> None:
        """Ends it, and all that it started, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.exited

    def _signal(self, number: signal.Signals) -> None:
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _run(
        self, process: asyncio.subprocess.Process, outputs: list[asyncio.StreamReader]
    ) -> int:
        readers = asyncio.gather(*(self._read(output) for output in outputs))
        code = await process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started, and may hold its pipes open
        await readers
        self.ready.cancel()
        return code

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await stream.readline()
            except ValueError:
                raw = b"(a line over 1 MiB was dropped)\n"
            if not raw:
                return
            self._heard(raw.decode(errors="replace").rstrip("\n"))

    def _heard(self, line: str) -> None:
        if line.startswith(READY_PREFIX) and not self.ready.done():
            self._heard_ready(json.loads(line.removeprefix(READY_PREFIX)))
            return
        if line.lower().startswith("error: "):
            if line != self._error:  # ranks fail alike
                self.log_error()  # one before: the last is the one that counts
            self._error = line
            return
        self._tail.append(line)
        self._log(self.spec.name, line)

    def _heard_ready(self, said: dict[str, Any]) -> None:
        ranks = self._ready_ranks
        ranks[said.get("rank", 0)] = Ready(
            pid=said.get("pid", self.pid),
            address=said["address"],
            metrics=said.get("metrics"),
            restart_arguments=tuple(said.get("restart_arguments", ())),
        )
        if len(ranks) == said.get("world_size", 1):
            self.ready.set_result(tuple(ranks[rank] for rank in sorted(ranks)))


async def _open_pipe() -> tuple[asyncio.StreamReader, int]:
    """A pipe: its reader, and the descriptor to give to a child.

    asyncio's own pipes to a child would make waiting for the child wait for their end as well, and
    so for whatever the child started and left behind.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = os.pipe()
    reader = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    await loop.connect_read_pipe(lambda: protocol, os.fdopen(ours, "rb", 0))
    return reader, theirs
