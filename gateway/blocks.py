"""An answer as a row of blocks: thoughts, words, calls, in the order in which they were written.

OpenAI's Responses and Anthropic's Messages both say an answer so; they differ in what they call
it. Deltas of one kind that follow each other are one block; each call is a block of its own. An
answer that says nothing at all has one block of no words, since clients look for one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from gateway.output import Finish, Piece
from gateway.parsing.deltas import (
    CallArguments,
    CallBegun,
    Content,
    Delta,
    Parsing,
    Reasoning,
)
from gateway.reading import Reading


class BlockKind(Enum):
    """What a block is made of."""

    REASONING = auto()
    WORDS = auto()
    CALL = auto()


@dataclass(slots=True)
class Block:
    """One of them; it grows until it is closed."""

    index: int
    kind: BlockKind
    id: str = ""
    """Of a call."""
    name: str = ""
    """Of the tool that is called."""
    _parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that has been added: words, thoughts, or a call's arguments as JSON."""
        return "".join(self._parts)

    def add(self, text: str) -> None:
        """More of it."""
        self._parts.append(text)


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins."""

    block: Block


@dataclass(frozen=True, slots=True)
class Added:
    """More of a block."""

    block: Block
    text: str
    spans: tuple[tuple[int, int], ...] = ()
    """Of words and thoughts: where they stand in all that the model wrote, in characters."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing more comes of a block."""

    block: Block


BlockEvent = Opened | Added | Closed


class Blocks:
    """The blocks of one sample, from its pieces."""

    def __init__(self, parsing: Parsing | None, bytes_of: Sequence[bytes] | None = None) -> None:
        """As of `Reading`."""
        self._reading = Reading(parsing, bytes_of)
        self._open: Block | None = None
        self.all: list[Block] = []
        self.finish: Finish | None = None
        """Set by a sample's last piece."""

    @property
    def num_calls(self) -> int:
        """Calls so far."""
        return self._reading.num_calls

    @property
    def num_thought_tokens(self) -> int:
        """Tokens of the thoughts so far."""
        return self._reading.num_thought_tokens

    def feed(self, pieces: Iterable[Piece]) -> list[BlockEvent]:
        """What these pieces, which come in order, change."""
        events: list[BlockEvent] = []
        for piece in pieces:
            for delta in self._reading.feed(piece):
                self._take(delta, events)
            if piece.finish is not None:
                self.finish = piece.finish
                if not self.all:
                    self._begin(BlockKind.WORDS, events)
                self._end(events)
        return events

    def _take(self, delta: Delta, events: list[BlockEvent]) -> None:
        match delta:
            case Content(text, start):
                self._say(BlockKind.WORDS, text, events, start)
            case Reasoning(text, start):
                self._say(BlockKind.REASONING, text, events, start)
            case CallBegun(_, id, name):
                self._begin(BlockKind.CALL, events, id, name)
            case CallArguments(_, text):
                self._say(BlockKind.CALL, text, events)

    def _say(
        self, kind: BlockKind, text: str, events: list[BlockEvent], start: int | None = None
    ) -> None:
        if self._open is None or self._open.kind is not kind:
            assert kind is not BlockKind.CALL, "arguments of no call"
            self._begin(kind, events)
        assert self._open is not None
        self._open.add(text)
        spans = () if start is None else ((start, start + len(text)),)
        last = events[-1] if events else None
        if isinstance(last, Added) and last.block is self._open:
            events[-1] = Added(self._open, last.text + text, last.spans + spans)
        else:
            events.append(Added(self._open, text, spans))

    def _begin(
        self, kind: BlockKind, events: list[BlockEvent], call_id: str = "", name: str = ""
    ) -> None:
        self._end(events)
        self._open = Block(len(self.all), kind, call_id, name)
        self.all.append(self._open)
        events.append(Opened(self._open))

    def _end(self, events: list[BlockEvent]) -> None:
        if self._open is not None:
            events.append(Closed(self._open))
            self._open = None
