"""Stop strings in a growing text.

The text ends at the match that is complete first; of several complete at the same character, at
the one that starts first. That rule does not depend on how the text is cut into pieces. Until it
is certain that a match does not begin there, the end of the text is held back, so nothing of a
stop string is ever shown by accident.

A text that must be of some language ends only where it is complete: other matches are part of it.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol


class Language(Protocol):
    """What the text must be."""

    def read(self, text: str) -> None:
        """The text goes on so."""

    def accepts(self, text: str) -> bool:
        """Whether the text, if it went on so, would be complete."""
        ...


class StopMatcher:
    """Watches one text for several stop strings."""

    def __init__(
        self, stops: Sequence[str], *, include: bool, language: Language | None = None
    ) -> None:
        """`stops` are not empty; `include` keeps the matched string in the text, which must be of
        `language`, if there is one."""
        self._stops = tuple(stops)
        self._include = include
        self._language = language
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""
        return self._matched

    def feed(self, text: str) -> str:
        """What may be shown now. After a match nothing more may be fed."""
        assert self._matched is None, "fed after the end"
        text = self._held + text
        if match := self._first_match(text):
            start, self._matched = match
            self._held = ""
            return text[: self._kept(start, self._matched)]
        shown = min((possible_start(text, stop) for stop in self._stops), default=len(text))
        self._held = text[shown:]
        self.pass_by(text[:shown])
        return text[:shown]

    def pass_by(self, text: str) -> None:
        """This is shown, and nothing is looked for in it."""
        if self._language is not None:
            self._language.read(text)

    def close(self) -> str:
        """What was held back, when the text ends without a match."""
        held, self._held = self._held, ""
        return held

    def _kept(self, start: int, stop: str) -> int:
        return start + len(stop) if self._include else start

    def _first_match(self, text: str) -> tuple[int, str] | None:
        if self._language is not None:
            return self._first_at_an_end(text, self._language)
        found = [(text.find(stop), stop) for stop in self._stops]
        found = [(start, stop) for start, stop in found if start >= 0]
        return min(found, key=lambda match: (match[0] + len(match[1]), match[0]), default=None)

    def _first_at_an_end(self, text: str, language: Language) -> tuple[int, str] | None:
        found = [(start, stop) for stop in self._stops for start in _occurrences(text, stop)]
        found.sort(key=lambda match: (match[0] + len(match[1]), match[0]))
        ends = (match for match in found if language.accepts(text[: self._kept(*match)]))
        return next(ends, None)


def _occurrences(text: str, wanted: str) -> Iterator[int]:
    start = text.find(wanted)
    while start >= 0:
        yield start
        start = text.find(wanted, start + 1)


def possible_start(text: str, wanted: str) -> int:
    """Where the longest end of `text` begins that `wanted` could complete; len(text) if none."""
    start = text.find(wanted[0], max(0, len(text) - len(wanted) + 1))
    while start >= 0:
        if wanted.startswith(text[start:]):
            return start
        start = text.find(wanted[0], start + 1)
    return len(text)
