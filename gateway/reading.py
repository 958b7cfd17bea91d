"""What one sample says, piece by piece, and how many of its tokens are thoughts.

A token is a thought if any of its text is told as one. Thoughts come first, so that where anything
else has been told, nothing is counted any more.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from gateway.detokenizer import TextOffsets
from gateway.output import Piece
from gateway.parsing.deltas import ContentParser, Delta, Parsing, Reasoning


class Reading:
    """The parser of one sample, beside its tokens."""

    def __init__(self, parsing: Parsing | None, bytes_of: Sequence[bytes] | None = None) -> None:
        """`parsing` says how the text is read; None: all of it is content. `bytes_of[token]` is
        what a token adds to the text; None: thoughts are not counted."""
        self._parser = parsing.make_parser() if parsing else ContentParser()
        self._count = _ThoughtCount(bytes_of) if parsing and bytes_of is not None else None

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._parser.num_calls

    @property
    def num_thought_tokens(self) -> int:
        """Tokens of the thoughts so far."""
        return self._count.total if self._count is not None else 0

    def feed(self, piece: Piece) -> list[Delta]:
        """What is certain now; the last piece tells all that was held back."""
        deltas = self._parser.feed(piece.text)
        if piece.finish is not None:
            deltas += self._parser.close()
        if self._count is not None and not self._count.is_over:
            self._count.feed(piece.token_ids, deltas)
        return deltas


class _ThoughtCount:
    def __init__(self, bytes_of: Sequence[bytes]) -> None:
        self.total = 0
        self.is_over = False
        """The answer has begun: there are no more thoughts."""
        self._bytes_of = bytes_of
        self._offsets = TextOffsets(bytes_of, 0)
        # Where tokens begin and end in the text that nothing has been told of yet.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def feed(self, token_ids: Iterable[int], deltas: Iterable[Delta]) -> None:
        for start, end in self._offsets.spans(
            token for token in token_ids if self._bytes_of[token]
        ):
            self._starts.append(start)
            self._ends.append(end)
        for delta in deltas:
            if not isinstance(delta, Reasoning):
                self.is_over = True
                self._starts, self._ends = [], []
                return
            self._count(delta.start, delta.start + len(delta.text))

    def _count(self, start: int, end: int) -> None:
        num_told = bisect_left(self._starts, end)
        num_before = min(bisect_left(self._starts, start), bisect_right(self._ends, start))
        self.total += max(0, num_told - num_before)
        del self._starts[:num_told], self._ends[:num_told]
