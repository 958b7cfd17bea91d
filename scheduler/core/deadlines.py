"""Which sequences must have ended by when: a heap, from which those that have ended drop lazily.

Looking for what is due costs nothing while nothing is, however many sequences there are.
"""

import heapq

from scheduler.core.sequence import Sequence, Status

_FEW = 64


class Deadlines:
    """The sequences that have a deadline, and perhaps as many again that have ended."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._num_live = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, sequence: Sequence, when: float) -> None:
        """An accepted sequence must end by then."""
        self._num_live += 1
        heapq.heappush(self._heap, (when, sequence.order[1], sequence))

    def note_end(self) -> None:
        """One of those added has ended; without this they would be kept until they are due."""
        self._num_live -= 1
        if len(self._heap) > _FEW + 2 * self._num_live:
            self._heap = [e for e in self._heap if e[2].status is not Status.FINISHED]
            heapq.heapify(self._heap)

    def next_at(self) -> float | None:
        """The earliest deadline of a sequence that has not ended."""
        heap = self._heap
        while heap and heap[0][2].status is Status.FINISHED:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Sequence]:
        """Sequences that should have ended, which are to be ended now, in the order of their
        deadlines."""
        due = []
        while (when := self.next_at()) is not None and when <= now:
            due.append(heapq.heappop(self._heap)[2])
        return due
