"""Where freed blocks and slots wait until no plan already sent can touch them.

A plan that is in flight may still write to blocks and slots whose sequence has just left. So what
a sequence leaves behind is fenced by the newest plan sent so far: when that plan's result arrives,
every plan which could name it has run. Limbo holds the references meanwhile.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from scheduler.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Remains:
    """What one sequence left behind."""

    fence: int
    """Step whose result sets it free."""
    slot: int
    blocks: list[int]
    sequence: Sequence
    num_planned: int
    """Of its positions, those that the plans compute."""


class Limbo:
    """Remains in the order of their fences."""

    def __init__(self) -> None:
        self._waiting: deque[Remains] = deque()

    def __iter__(self) -> Iterator[Remains]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, remains: Remains) -> None:
        """Keep until `take(step)` reaches the fence; fences never decrease."""
        self._waiting.append(remains)

    def take(self, step: int) -> list[Remains]:
        """What the result of `step` sets free."""
        freed = []
        while self._waiting and self._waiting[0].fence <= step:
            freed.append(self._waiting.popleft())
        return freed

    def mentions(self) -> Counter[int]:
        """How often each block is mentioned here."""
        return Counter(block for remains in self._waiting for block in remains.blocks)
