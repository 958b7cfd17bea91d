"""A server as a process: started, waited for, watched, and ended with all that it started."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.compare_cpu.engines import LOOPBACK, Engine, free_port
from quire.http import Endpoint, Unreachable

START_S = 900.0
END_S = 30.0
KILLED_S = 5.0
"""Memory of what was killed is free a moment later."""
_POLL_S = 0.5
_LOADING = 503


class EngineFailed(RuntimeError):
    """It did not start, or not every token came; the message says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers.

    Attributes:
        pid: of the process that was started.
        model: what it calls its model.
        started_s: from its start until it had answered.
    """

    pid: int
    endpoint: Endpoint
    model: str
    started_s: float


@contextlib.contextmanager
def running(engine: Engine, log: Path) -> Iterator[Running]:
    """Yields once it has answered a request; ends it, whatever happens.

    Raises:
        EngineFailed: it ended, or did not answer within `START_S`.
    """
    port, began = free_port(), time.monotonic()
    endpoint = Endpoint(f"http://{LOOPBACK}:{port}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*engine.command, "--port", str(port)],
            env={**os.environ, **dict(engine.environment)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours; it is told when we are done
        )
    try:
        model = asyncio.run(_until_answered(process, endpoint, log))
        yield Running(process.pid, endpoint, model, time.monotonic() - began)
    finally:
        _end(process)


def tree(pid: int) -> list[psutil.Process]:
    """A process, if it is there, and all that descend from it."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


async def _until_answered(process: "subprocess.Popen[bytes]", endpoint: Endpoint, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineFailed(f"it ended with {process.returncode}: {_last_lines(log)}")
        with contextlib.suppress(Unreachable):
            if (model := await _answered(endpoint)) is not None:
                return model
        await asyncio.sleep(_POLL_S)
    raise EngineFailed(f"it did not answer within {START_S:.0f} s: {_last_lines(log)}")


async def _answered(endpoint: Endpoint) -> str | None:
    """The model's name, once it has made a few tokens; None: it is still loading."""
    status, body = await endpoint.get("/v1/models")
    if status == _LOADING:
        return None
    model: str = json.loads(body)["data"][0]["id"]
    asked = {"model": model, "prompt": [1000, 1001, 1002], "max_tokens": 2}
    status, body = await endpoint.try_post("/v1/completions", asked)
    if status == _LOADING:
        return None
    if status != 200:
        raise EngineFailed(f"it refuses: {body[:300].decode(errors='replace')}")
    return model


def _end(process: "subprocess.Popen[bytes]") -> None:
    """As Ctrl-C would end it; what is then left is killed."""
    members = tree(process.pid)
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        psutil.wait_procs(members, timeout=END_S)
    finally:
        left = [*members, *_of_session(process.pid)]
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        psutil.wait_procs(left, timeout=KILLED_S)


def _of_session(leader: int) -> list[psutil.Process]:
    """Those whose parent has ended are in no tree any more, and still in the session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it said nothing"


def version(engine: Engine) -> str:
    """What it says of itself; empty where it says nothing."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            engine.version_command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return ""
