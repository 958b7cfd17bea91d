"""What the text of one sample turns into while it grows.

    Content         words for whoever asked
    Reasoning       what the model thinks before it answers
    CallBegun       it calls a tool; calls are numbered from 0
    CallArguments   more of the JSON text of that call's arguments

A parser gets the text in pieces, cut anywhere, and says what is certain so far. Put together
(`gathered`), the deltas depend on the text alone and not on how it was cut: a stream and a whole
answer say the same.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer's text."""

    text: str
    start: int = field(default=0, compare=False)
    """Where it stands in all that the model wrote, in characters."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the thoughts before the answer."""

    text: str
    start: int = field(default=0, compare=False)
    """As of `Content`."""


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a tool; its arguments follow."""

    index: int
    id: str
    """Unique; the result comes back under it."""
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of a call that has begun."""

    index: int
    text: str
    """A piece of JSON text: an object when put together, unless the model failed to write one."""


Delta = Content | Reasoning | CallBegun | CallArguments


class Parser(Protocol):
    """Reads the text of one sample."""

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""

    def feed(self, text: str) -> list[Delta]:
        """What is certain now."""

    def close(self) -> list[Delta]:
        """What was held back, when the text has ended; nothing may be fed after it."""


@dataclass(frozen=True, slots=True)
class Parsing:
    """How the samples of one call are read."""

    make_parser: Callable[[], Parser]
    """A parser for one sample."""
    shown_tokens: frozenset[int] = frozenset()
    """Special tokens that the parser needs to see, though clients do not."""
    only_calls: bool = False
    """They must be calls, after thoughts perhaps: there is never any content."""


class ContentParser:
    """For a model that neither reasons nor calls: all is content."""

    num_calls = 0

    def __init__(self) -> None:
        self._num_read = 0

    def feed(self, text: str) -> list[Delta]:
        """See `Parser`."""
        start = self._num_read
        self._num_read += len(text)
        return [Content(text, start)] if text else []

    def close(self) -> list[Delta]:
        """See `Parser`."""
        return []


@dataclass(slots=True)
class CallSaid:
    """A whole call of a tool."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Said:
    """Deltas put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallSaid] = field(default_factory=list)


def gathered(deltas: Iterable[Delta]) -> Said:
    """All that was said, from the deltas of a whole sample."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[CallSaid] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        match delta:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallBegun(_, id, name):
                calls.append(CallSaid(id, name))
                arguments.append([])
            case CallArguments(index, text):
                arguments[index].append(text)
    for call, pieces in zip(calls, arguments, strict=True):
        call.arguments = "".join(pieces)
    return Said("".join(content), "".join(reasoning), calls)
