"""`quire serve` as a process, as a user starts it."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ports import free_port

START_S = 180.0


@dataclass
class Server:
    """A stack that answers. `lines` is what it printed, standard output and error together."""

    process: subprocess.Popen[str]
    port: int
    grpc_port: int
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def quire(self, *arguments: str) -> str:
        """Standard output of another `quire` command that sees this stack alone."""
        return subprocess.run(
            [sys.executable, "-m", "quire", *arguments],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def until_said(self, text: str) -> None:
        """Returns when some line of it has this."""
        deadline = time.monotonic() + START_S
        while not any(text in line for line in self.lines):
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.01)

    def rows(self) -> list[dict[str, Any]]:
        """What `quire ps` lists."""
        rows: list[dict[str, Any]] = json.loads(self.quire("ps", "--json"))
        return rows

    def processes(self) -> dict[str, int]:
        """Process ids by role (of the first of each role)."""
        return {row["role"]: row["pid"] for row in reversed(self.rows())}

    def state(self) -> dict[str, Any]:
        """The scheduler's totals."""
        state: dict[str, Any] = json.loads(self.quire("state", "--json"))
        return state


@contextlib.contextmanager
def serve(model: str | Path, runtime_dir: Path, *flags: str) -> Iterator[Server]:
    """Yields once the stack says that it serves; ends it with Ctrl-C."""
    port, grpc_port = free_port(), free_port()
    environment = {**os.environ, "QUIRE_RUN": str(runtime_dir)}
    command = [sys.executable, "-m", "quire", "serve", str(model)]
    command += ["--port", str(port), "--grpc-port", str(grpc_port), "--threads", "1", *flags]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server = Server(process, port, grpc_port, environment)
    announced: queue.SimpleQueue[bool] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(server, announced))
    reader.start()
    try:
        assert announced.get(timeout=START_S), "".join(server.lines)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        reader.join()


def _read(server: Server, announced: "queue.SimpleQueue[bool]") -> None:
    assert server.process.stdout is not None
    with server.process.stdout as stream:
        for line in stream:
            server.lines.append(line)
            if "curl" in line:
                announced.put(True)
    announced.put(False)
