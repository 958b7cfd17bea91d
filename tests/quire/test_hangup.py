"""SIGHUP of a terminal that is closed, and of an operator."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAR = """
import signal, sys
from quire.commands.hangup import Terminal
terminal = Terminal()
signal.signal(signal.SIGHUP, lambda *_: None)
print("there", flush=True)
while True:
    signal.sigwait({signal.SIGHUP})
    print("gone" if terminal.is_gone() else "there", flush=True)
"""


def of_terminal(said: Path, *, before: str) -> tuple[int, int]:
    """A process that leads a terminal's session and writes to a file; its id, and the terminal."""
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})\n"
    pid, terminal = pty.fork()
    if pid == 0:
        output = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.execv(sys.executable, [sys.executable, "-c", block + before + HEAR])
    return pid, terminal


def until(said: Path, text: str) -> None:
    """Returns when it says just that."""
    for _ in range(3000):
        if said.exists() and said.read_text() == text:
            return
        time.sleep(0.01)
    raise AssertionError(said.read_text())


@pytest.mark.parametrize(
    ("before", "last"),
    [
        ("signal.signal(signal.SIGHUP, signal.SIG_DFL)\n", "gone"),
        ("signal.signal(signal.SIGHUP, signal.SIG_IGN)\n", "there"),
    ],
    ids=["plainly", "under nohup"],
)
def test_a_terminal_that_is_closed_is_told_from_an_operator(
    tmp_path: Path, before: str, last: str
) -> None:
    said = tmp_path / "said"
    pid, terminal = of_terminal(said, before=before)
    try:
        until(said, "there\n")
        os.kill(pid, signal.SIGHUP)
        until(said, "there\nthere\n")
        os.close(terminal)
        until(said, f"there\nthere\n{last}\n")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_who_never_had_one_cannot_lose_it() -> None:
    program = "from quire.commands.hangup import Terminal; print(Terminal().is_gone())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    assert done.stdout == "False\n"
