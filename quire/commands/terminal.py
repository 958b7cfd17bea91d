"""Text shown while it is generated, and its reader's wish to leave heard meanwhile."""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import sys
import termios
from collections.abc import Iterator

from rich.cells import cell_len, get_character_cell_size

_TAB_WIDTH = 8
_BLANK = re.compile(r"[^\S\n]")


class Screen:
    """Where answers appear as they come."""

    def __init__(self, *, is_terminal: bool) -> None:
        """A terminal gets its lines broken between words; anything else gets them as they are."""
        self._wrap = WordWrap() if is_terminal else None
        self._in_line = False

    def write(self, text: str) -> None:
        """Shows a part of an answer."""
        self._in_line = True
        sys.stdout.write(self._wrap.feed(text) if self._wrap else text)
        sys.stdout.flush()

    def end(self) -> None:
        """Nothing follows in this answer: ends its line, if it has one."""
        if self._in_line:
            self.write("\n")
            self._in_line = False

    def watched(self) -> contextlib.AbstractContextManager[None]:
        """Around an answer: it ends with EOFError when whoever reads it wants to leave."""
        return until_end_of_input() if self._wrap else contextlib.nullcontext()


class WordWrap:
    """Breaks lines between words as text comes in: each word is shown when it is whole."""

    def __init__(self, width: int | None = None) -> None:
        """`width`: columns; None asks the terminal, before each word."""
        self._width = width
        self._column = 0
        self._blanks = ""
        """Before the word; dropped where the line is broken."""
        self._word = ""

    def feed(self, text: str) -> str:
        """What to print now."""
        return "".join(map(self._next, text))

    def flush(self) -> str:
        """The word that may not be whole."""
        blanks, word = self._blanks, self._word
        self._blanks = self._word = ""
        if not word:
            self._column += _width_of(blanks)
            return blanks
        width, columns = _width_of(word), self._columns()
        if self._column and self._column + _width_of(blanks) + width > columns:
            blanks, self._column = "\n", 0
        self._column += _width_of(blanks) + width
        if self._column > columns:  # a word longer than a line: the terminal breaks it
            self._column %= columns
        return blanks + word

    def _next(self, character: str) -> str:
        if character == "\n":
            shown = self.flush() + character
            self._column = 0
            return shown
        if _BLANK.match(character):
            shown = self.flush() if self._word else ""
            self._blanks += character
            return shown
        if get_character_cell_size(character) > 1:  # a line may be broken around each of these
            shown = self.flush() if self._word else ""
            self._word = character
            return shown + self.flush()
        self._word += character
        return ""

    def _columns(self) -> int:
        return self._width or shutil.get_terminal_size().columns


@contextlib.contextmanager
def until_end_of_input() -> Iterator[None]:
    """Ends the block with EOFError when Ctrl-D is typed on a line of its own.

    What was typed ahead instead stays for whoever reads next, and nothing is heard after it.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    terminal = sys.stdin.fileno()
    has_ended = False

    def look() -> None:
        nonlocal has_ended
        loop.remove_reader(terminal)
        if not _num_typed(terminal):
            os.read(terminal, 1)  # takes the mark away, so that it does not end the next one, too
            has_ended = True
            task.cancel()

    loop.add_reader(terminal, look)
    try:
        yield
    except asyncio.CancelledError:
        if not has_ended:
            raise
        task.uncancel()
        raise EOFError from None
    finally:
        loop.remove_reader(terminal)


def _num_typed(terminal: int) -> int:
    """Bytes that can be read at once; a terminal that can be read and has none is at its end."""
    answer = fcntl.ioctl(terminal, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def _width_of(text: str) -> int:
    return cell_len(text) + (_TAB_WIDTH - 1) * text.count("\t")
