"""The ranks of a replica act as one: a message reaches no executor before every rank holds it.

The scheduler writes the same bytes to every rank, but a stream that breaks may cut one rank off
sooner than another. A rank that ran a plan which its siblings never got would wait for them in a
collective, or worse, add its numbers to those of another plan. So the transports agree first, while
the executors still compute the step before, and rank 0's, the leader, decides:

    follower ── "I hold it" ──▶ leader ── "deliver it" ──▶ follower
                                   └── once all hold it ──▶ its own executor

Both name a message alike: the first of a stream (its Welcome, which no other stream has) by its
bytes, each later one by an empty frame. A follower keeps what it was not told to deliver until it
hears of a later one: then the leader has dropped it, since it never got it itself.

Ranks leave as one, too: when one of them wants to, the leader ends the sequence for all.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from worker.pipe import END

NEXT = b""
"""Names the message after the one named before."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a stream."""

    data: bytes
    stream: object
    opens: bool
    """It is the stream's first."""

    @property
    def name(self) -> bytes:
        """What siblings call it."""
        return self.data if self.opens else NEXT


Deliver = Callable[[Message], None]
"""Takes the next message that every rank holds; `END`, on no stream, is the last."""

_END = Message(END, None, opens=False)


Post = Callable[[bytes], None]
"""Sends a frame to a sibling without waiting."""


class Lockstep(Protocol):
    """One transport's part in the agreement."""

    @property
    def has_ended(self) -> bool:
        """The end has been delivered: siblings may go."""
        ...

    def take(self, message: Message) -> None:
        """This rank's stream brought a message."""
        ...

    def ask_end(self) -> None:
        """This rank's executor wants to leave."""
        ...

    def hear(self, sibling: int, frame: bytes) -> None:
        """A sibling, by its index among those given, has sent a frame."""
        ...


class _Holdings:
    """How much of its newest stream a follower holds."""

    def __init__(self) -> None:
        self._opening = b""
        self._count = 0

    def add(self, name: bytes) -> None:
        if name != NEXT:
            self._opening, self._count = name, 0
        self._count += 1

    def holds(self, opening: bytes, index: int) -> bool:
        return self._opening == opening and self._count > index


class Leader:
    """Rank 0's; a rank without siblings is one without followers.

    Args:
        followers: to each follower.
        deliver: to the executor.
    """

    def __init__(self, followers: list[Post], deliver: Deliver) -> None:
        self.has_ended = False
        self._followers = followers
        self._deliver = deliver
        self._holdings = [_Holdings() for _ in followers]
        self._waiting: deque[Message] = deque()
        self._opening = b""
        self._num_released = 0

    def take(self, message: Message) -> None:
        """This rank's stream brought a message."""
        if message.opens:
            # What the stream before brought and some rank lacks, no rank shall run.
            self._waiting.clear()
            self._opening, self._num_released = message.data, 0
        self._waiting.append(message)
        self._release()

    def ask_end(self) -> None:
        """The sequence ends here, for all."""
        if self.has_ended:
            return
        self.has_ended = True
        self._waiting.clear()
        for post in self._followers:
            post(END)
        self._deliver(_END)

    def hear(self, sibling: int, frame: bytes) -> None:
        """A follower holds a message, or wants to leave."""
        if frame == END:
            self.ask_end()
        else:
            self._holdings[sibling].add(frame)
            self._release()

    def _release(self) -> None:
        while self._waiting and not self.has_ended and self._all_hold_the_next():
            message = self._waiting.popleft()
            self._num_released += 1
            for post in self._followers:
                post(message.name)
            self._deliver(message)

    def _all_hold_the_next(self) -> bool:
        return all(held.holds(self._opening, self._num_released) for held in self._holdings)


class Follower:
    """Any other rank's.

    Args:
        leader: to the leader.
        deliver: to the executor.
    """

    def __init__(self, leader: Post, deliver: Deliver) -> None:
        self.has_ended = False
        self._leader = leader
        self._deliver = deliver
        self._held: deque[Message] = deque()

    def take(self, message: Message) -> None:
        """This rank's stream brought a message."""
        self._held.append(message)
        self._leader(message.name)

    def ask_end(self) -> None:
        """The leader will say when."""
        self._leader(END)

    def hear(self, sibling: int, frame: bytes) -> None:
        """The leader says what is next."""
        if frame == END:
            self.has_ended = True
            self._deliver(_END)
            return
        while (message := self._held.popleft()).name != frame:
            pass  # the leader has dropped it
        self._deliver(message)
