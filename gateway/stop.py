"""Stop strings in a growing text.

The text ends at the match that is complete first; of several complete at the same character, at
the one that starts first. That rule does not depend on how the text is cut into pieces. Until it
is certain that a match does not begin there, the end of the text is held back, so nothing of a
stop string is ever shown by accident.
"""

from collections.abc import Sequence


class StopMatcher:
    """Watches one text for several stop strings."""

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        """`stops` are not empty; `include` keeps the matched string in the text."""
        self._stops = tuple(stops)
        self._include = include
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
            return text[: start + len(self._matched) if self._include else start]
        shown = min((possible_start(text, stop) for stop in self._stops), default=len(text))
        self._held = text[shown:]
        return text[:shown]

    def close(self) -> str:
        """What was held back, when the text ends without a match."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = [(text.find(stop), stop) for stop in self._stops]
        found = [(start, stop) for start, stop in found if start >= 0]
        return min(found, key=lambda match: (match[0] + len(match[1]), match[0]), default=None)


def possible_start(text: str, wanted: str) -> int:
    """Where the longest end of `text` begins that `wanted` could complete; len(text) if none."""
    start = text.find(wanted[0], max(0, len(text) - len(wanted) + 1))
    while start >= 0:
        if wanted.startswith(text[start:]):
            return start
        start = text.find(wanted[0], start + 1)
    return len(text)
