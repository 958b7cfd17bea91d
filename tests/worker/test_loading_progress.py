"""Loading says how far it is: a bar at a terminal, two lines in a log."""

import io
import logging
import sys
import time

import pytest

from worker.loading_progress import loading, unless_quick


class Terminal(io.StringIO):
    """Text that believes somebody is looking."""

    def isatty(self) -> bool:
        """Always."""
        return True


def test_a_log_gets_a_line_at_each_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), loading("tiny", 2) as advance:
        assert caplog.messages == ["loading tiny: 2 tensors"]
        advance()
        advance()
    assert caplog.messages[1].startswith("loaded tiny in ")
    assert len(caplog.messages) == 2


def test_a_person_gets_a_bar(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with caplog.at_level(logging.INFO), loading("tiny", 2) as advance:
        advance()
        advance()
    assert "loading tiny" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    (line,) = caplog.messages
    assert line.startswith("loaded tiny in ")


def test_what_fails_is_not_said_to_be_loaded(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with loading("tiny", 2):
            raise OSError("the disk has gone")

    with caplog.at_level(logging.INFO), pytest.raises(OSError, match="the disk"):
        fail()
    assert caplog.messages == ["loading tiny: 2 tensors"]


def test_what_is_quick_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), unless_quick("compiling", after_s=3600):
        pass
    assert not caplog.messages


def test_what_takes_long_says_so_while_it_does(caplog: pytest.LogCaptureFixture) -> None:
    end = time.monotonic() + 20
    with caplog.at_level(logging.INFO), unless_quick("compiling", after_s=0.01):
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.01)
        assert caplog.messages == ["compiling"]
    assert caplog.messages[1].startswith("done in ")
