"""Sequences that wait, in the order in which they are to be served."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from scheduler.core.policy import Order
from scheduler.core.sequence import Sequence


def _order(sequence: Sequence) -> Order:
    return sequence.order


class WaitingQueue:
    """A sorted list: orders never change, so insertion and removal are one bisection each."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self.num_tokens = 0
        """Tokens to compute for everyone here, as estimated when each was queued."""

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def first(self) -> Sequence:
        """Who is next; the queue must not be empty."""
        return self._sequences[0]

    def push(self, sequence: Sequence, num_tokens: int) -> None:
        """Queue a sequence that needs about `num_tokens` computed."""
        assert sequence.queue is None, "the sequence waits elsewhere"
        sequence.queue = self
        sequence.num_queued_tokens = num_tokens
        self.num_tokens += num_tokens
        insort(self._sequences, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out of the queue; it must be here."""
        assert sequence.queue is self, "the sequence waits elsewhere"
        index = bisect_left(self._sequences, sequence.order, key=_order)
        sequence.queue = None
        del self._sequences[index]
        self.num_tokens -= sequence.num_queued_tokens

    def take_all(self) -> list[Sequence]:
        """Empty the queue."""
        sequences, self._sequences, self.num_tokens = self._sequences, [], 0
        for sequence in sequences:
            sequence.queue = None
        return sequences

    def check_integrity(self) -> None:
        """Raises AssertionError unless sorted and summed up."""
        orders = [sequence.order for sequence in self._sequences]
        assert orders == sorted(set(orders)), "the queue is out of order"
        assert all(sequence.queue is self for sequence in self._sequences), "it waits elsewhere"
        total = sum(sequence.num_queued_tokens for sequence in self._sequences)
        assert total == self.num_tokens, "the queue's tokens are miscounted"
