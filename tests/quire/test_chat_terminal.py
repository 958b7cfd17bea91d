"""`quire chat` in a terminal: what is typed besides questions."""

import codecs
import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.quire.conftest import Answer, Server

CTRL_D = "\x04"
PATIENCE_S = 60.0


class Terminal:
    """A person at a terminal: types, and reads what is shown."""

    def __init__(self, url: str, cache: Path) -> None:
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quire", "chat", "--url", url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"QUIRE_CACHE": str(cache), "TERM": "dumb"},
        )
        os.close(theirs)
        self._shown = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read_until(self, wanted: str) -> str:
        """What is shown up to these words; fails if the other side closes before."""
        while wanted not in self._shown:
            self._shown += self._decode(os.read(self._ours, 4096))
        shown, self._shown = self._shown.split(wanted, 1)
        return re.sub(r"\x1b\[[\d;?]*\w", "", shown)

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        with contextlib.suppress(OSError):  # how Linux says that nobody has the terminal open
            while os.read(self._ours, 4096):
                pass
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(server: Server, tmp_path: Path) -> Iterator[Terminal]:
    server.answers["/v1/models"] = lambda answer, _: answer.json({"data": [{"id": "tiny"}]})
    error = {"error": {"param": "messages", "message": "there are none"}}  # who converses says so
    server.answers["/v1/chat/completions"] = lambda answer, _: answer.json(error, status=400)
    with contextlib.closing(Terminal(server.url, tmp_path)) as terminal:
        terminal.read_until("leaves.")
        terminal.read_until("›")
        yield terminal


def questions(server: Server) -> list[str]:
    return [asked["messages"][-1]["content"] for asked in server.requests if "messages" in asked]


def answers_hello(answer: Answer, _: object) -> None:
    answer.events({"choices": [{"delta": {"content": "Hello."}}]})


def test_an_unknown_command_is_told_and_not_asked(server: Server, terminal: Terminal) -> None:
    server.answers["/v1/chat/completions"] = answers_hello
    for line in ("/help", "/clear all of it", "/"):
        terminal.type(line + "\n")
        terminal.read_until(f"{line.split()[0]} is no command.")
        terminal.read_until("›")
    assert questions(server) == []
    terminal.type("/usr/bin is what?\n")
    terminal.read_until("Hello.")
    assert questions(server) == ["/usr/bin is what?"]


def test_ctrl_d_during_an_answer_leaves(server: Server, terminal: Terminal) -> None:
    gone = threading.Event()

    def endless(answer: Answer, _: object) -> None:
        answer.begin_events()
        try:
            while True:
                answer.chunk(b'data: {"choices": [{"delta": {"content": "on and "}}]}\n\n')
                gone.wait(0.01)
        except OSError:  # the client left
            gone.set()

    server.answers["/v1/chat/completions"] = endless
    terminal.type("Go on.\n")
    terminal.read_until("on and")
    terminal.type(CTRL_D)
    terminal.read_until("…")
    assert terminal.end() == 0
    assert gone.wait(PATIENCE_S)


def test_what_is_typed_ahead_during_an_answer_is_the_next_question(
    server: Server, terminal: Terminal
) -> None:
    typed = threading.Event()

    def answers_later(answer: Answer, _: object) -> None:
        typed.wait(PATIENCE_S)
        answers_hello(answer, _)

    server.answers["/v1/chat/completions"] = answers_later
    terminal.type("one\n")
    terminal.read_until("one")
    while questions(server) != ["one"]:
        typed.wait(0.01)
    terminal.type("two\n")
    terminal.read_until("two")
    typed.set()
    terminal.read_until("Hello.")
    terminal.read_until("Hello.")
    assert questions(server) == ["one", "two"]
    terminal.read_until("›")
    terminal.type(CTRL_D)
    assert terminal.end() == 0
