"""Tokens to text while they arrive.

A character may span tokens: bytes that do not yet make one are held back until they do, or until
it is certain that they never will (then U+FFFD stands for them). However the tokens are cut into
calls, the texts put together are the text of the whole. Work is linear in the bytes, and at most
three are held.
"""

import codecs
from collections.abc import Iterable, Sequence

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one growing sequence."""

    def __init__(self, bytes_of: Sequence[bytes]) -> None:
        """`bytes_of[token]` is what a token stands for."""
        self._bytes_of = bytes_of
        self._utf8 = _Utf8Decoder("replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        """The characters that these tokens complete."""
        bytes_of = self._bytes_of
        return self._utf8.decode(b"".join([bytes_of[token] for token in token_ids]))

    def close(self) -> str:
        """What is held back; nothing may be fed after it."""
        return self._utf8.decode(b"", final=True)


class TextOffsets:
    """Where each token begins in a text that grows, in characters.

    A token that goes on with a character begins where that character does.
    """

    def __init__(self, bytes_of: Sequence[bytes], start: int) -> None:
        """`bytes_of[token]` is what the token adds to the text; `start`: the first one's offset."""
        self._bytes_of = bytes_of
        self._utf8 = _Utf8Decoder("replace")
        self._next = start
        self._is_whole = True
        """No character is begun that a later token must complete."""

    @property
    def end(self) -> int:
        """Where the next token begins."""
        return self._next

    def feed(self, token_ids: Iterable[int]) -> list[int]:
        """The offsets of these tokens."""
        return [start for start, _ in self.spans(token_ids)]

    def spans(self, token_ids: Iterable[int]) -> list[tuple[int, int]]:
        """Where these tokens begin and end; one that begins a character ends behind it."""
        spans = []
        at, bytes_of = self._next, self._bytes_of
        for token in token_ids:
            start, content = at, bytes_of[token]
            if self._is_whole and content.isascii():  # nearly all, and decoding is what costs
                at += len(content)
            else:
                at += len(self._utf8.decode(content))
                self._is_whole = not self._utf8.getstate()[0]
            spans.append((start, at if self._is_whole else at + 1))
        self._next = at
        return spans
