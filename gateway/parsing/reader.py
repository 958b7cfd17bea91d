"""Reading a text that is still being written.

What a format looks like is written as if the text were all there: a generator that takes, accepts
and expects, and that pauses (`yield`) wherever it must see more before it can go on. The same code
then reads a stream and a whole answer, and what it says cannot depend on the cuts.

Text that may turn out not to be a call is held: if it is one it is dropped, since the call says the
same (`commit`), and if not it is content (`release`). Nothing is read twice, so work is linear
in the text, and white space next to a marker belongs to the marker.
"""

import re
import secrets
import string
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from gateway.parsing.deltas import CallArguments, CallBegun, Content, Delta, Reasoning
from gateway.stop import possible_start

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Pauses when it needs more text."""
Schemas = Mapping[str, Mapping[str, Any] | None]
"""The tools there are: what their arguments must be, by name."""

MAX_SPACE = 64
"""White space before a marker that belongs to it."""
_SPACE = " \t\r\n"
_LETTERS = string.ascii_letters + string.digits
_NOT_SPACE = re.compile(r"[^ \t\r\n]")


class NotACall(Exception):
    """What looked like a call is not one: it is content."""


class Markers:
    """Strings that mean something; none is the beginning of another."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._pattern = re.compile("|".join(map(re.escape, strings))) if strings else None

    def __bool__(self) -> bool:
        return bool(self._strings)

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """Where the first one is."""
        found = self._pattern.search(text, start) if self._pattern is not None else None
        return found.span() if found else None

    def first_open(self, text: str, start: int) -> int:
        """Where one may begin that `text` does not yet end; its length if there is none."""
        rest = text[start:]
        starts = [possible_start(rest, marker) for marker in self._strings]
        return start + min(starts, default=len(rest))


def call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """The same in nine letters and digits."""
    return "".join([secrets.choice(_LETTERS) for _ in range(9)])


class Reader:
    """The text so far, and what it has said."""

    def __init__(
        self,
        *,
        parallel: bool = True,
        exact: bool = False,
        only_calls: bool = False,
        make_id: Callable[[], str] = call_id,
    ) -> None:
        """Unless `parallel`, only the first call is told of. With `exact` calls are only what a
        grammar of calls lets through as such; with `only_calls` it lets nothing else through, so
        what is none is a call that was cut, and no content."""
        self.deltas: list[Delta] = []
        self.num_calls = 0
        self.ended = False
        self.exact = exact
        self._only_calls = only_calls
        self._parallel = parallel
        self._make_id = make_id
        self._muted = False
        self._text = ""
        self._at = 0
        self._num_dropped = 0
        """Characters of the answer before `_text`."""
        self._held: list[str] | None = None
        self._held_from = 0

    def add(self, text: str) -> None:
        """More has been written."""
        self._text = self._text[self._at :] + text
        self._num_dropped += self._at
        self._at = 0

    @property
    def num_kept(self) -> int:
        """Characters that are at hand: what waits for what comes after it, and what came last."""
        return len(self._text)

    # Words and what lies between them.

    def words(self, markers: Markers, kind: type[Content] | type[Reasoning]) -> Steps[str | None]:
        """Says all up to the next of `markers`, and takes that, held; None: the text has ended."""
        while True:
            found = markers.find(self._text, self._at)
            if found is not None:
                start, end = found
                self._say(kind, self._before_space(start))
                self.hold()
                self._take(end)
                return self._text[start:end]
            if self.ended:
                self._say(kind, len(self._text))
                return None
            certain = len(self._text)
            if markers:
                certain = self._before_space(markers.first_open(self._text, self._at))
            self._say(kind, certain)
            yield

    def until(self, markers: Markers, tell: Callable[[str], None]) -> Steps[bool]:
        """Tells all up to the next of `markers`, and takes that; whether there was one."""
        while True:
            found = markers.find(self._text, self._at)
            end = found[0] if found else len(self._text)
            if not found and not self.ended:
                end = markers.first_open(self._text, self._at)
            if piece := self._take(end):
                tell(piece)
            if found:
                self._take(found[1])
            if found or self.ended:
                return found is not None
            yield

    def hold(self) -> None:
        """What is taken from here on may be content after all."""
        self._held = []
        self._held_from = self._num_dropped + self._at

    def commit(self) -> None:
        """What was held has been understood."""
        self._held = None

    def release(self) -> None:
        """What was held is content."""
        held, self._held = self._held, None
        if held and not self._only_calls and (text := "".join(held)):
            self.deltas.append(Content(text, self._held_from))

    # Calls.

    def begin_call(self, name: str) -> None:
        """It is a call; what was held is part of it."""
        self.commit()
        self._muted = not self._parallel and self.num_calls > 0
        if not self._muted:
            self.deltas.append(CallBegun(self.num_calls, self._make_id(), name))
            self.num_calls += 1

    def say_arguments(self, text: str) -> None:
        """More arguments of the call that was begun last."""
        if text and not self._muted:
            self.deltas.append(CallArguments(self.num_calls - 1, text))

    # Pieces of syntax.

    def peek(self) -> Steps[str]:
        """The next character; empty at the end."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def take(self) -> Steps[str]:
        """The next character, taken; empty at the end."""
        character = yield from self.peek()
        self._take(self._at + len(character))
        return character

    def accept(self, wanted: str) -> Steps[bool]:
        """Takes `wanted` if that is what comes."""
        while True:
            if self._text.startswith(wanted, self._at):
                self._take(self._at + len(wanted))
                return True
            rest = self._text[self._at : self._at + len(wanted)]
            if self.ended or not wanted.startswith(rest):
                return False
            yield

    def expect(self, wanted: str) -> Steps[None]:
        """Takes `wanted`. Raises NotACall if something else comes."""
        if not (yield from self.accept(wanted)):
            raise NotACall

    def ended_within(self, wanted: str) -> bool:
        """Whether the text has ended before it could be seen that `wanted` comes."""
        rest = self._text[self._at :]
        return self.ended and rest != wanted and wanted.startswith(rest)

    @property
    def is_at_end(self) -> bool:
        """Whether all that has been written has been taken."""
        return self._at == len(self._text)

    def opens_with(self, wanted: str) -> Steps[bool]:
        """Takes `wanted`, with a little white space before it, if that is what comes."""
        while True:
            found = _NOT_SPACE.search(self._text, self._at, self._at + MAX_SPACE)
            start = found.start() if found else min(len(self._text), self._at + MAX_SPACE)
            if self._text.startswith(wanted, start):
                self._take(start + len(wanted))
                return True
            rest = self._text[start : start + len(wanted)]
            if self.ended or not wanted.startswith(rest):
                return False
            yield

    def skip_space(self) -> Steps[None]:
        """Takes white space."""
        while True:
            found = _NOT_SPACE.search(self._text, self._at)
            self._take(found.start() if found else len(self._text))
            if found or self.ended:
                return
            yield

    def through(self, pattern: re.Pattern[str], tell: Callable[[str], None]) -> Steps[str]:
        """Takes all to the end of the next match of `pattern`, which matches one character, and
        tells it; returns that character, or nothing at the end."""
        while True:
            found = pattern.search(self._text, self._at)
            if piece := self._take(found.end() if found else len(self._text)):
                tell(piece)
            if found:
                return found[0]
            if self.ended:
                return ""
            yield

    def run_of(self, allowed: re.Pattern[str], limit: int) -> Steps[str]:
        """Takes characters while `allowed` matches them; at most `limit` + 1 of them."""
        taken: list[str] = []
        while len(taken) <= limit:
            character = yield from self.peek()
            if not character or not allowed.match(character):
                break
            taken.append((yield from self.take()))
        return "".join(taken)

    def _say(self, kind: type[Content] | type[Reasoning], end: int) -> None:
        if end > self._at:
            if kind is Reasoning or not self._only_calls:
                self.deltas.append(kind(self._text[self._at : end], self._num_dropped + self._at))
            self._at = end

    def _take(self, end: int) -> str:
        piece = self._text[self._at : end]
        self._at = end
        if self._held is not None:
            self._held.append(piece)
        return piece

    def _before_space(self, end: int) -> int:
        start = end
        least = max(self._at, end - MAX_SPACE)
        while start > least and self._text[start - 1] in _SPACE:
            start -= 1
        return start
