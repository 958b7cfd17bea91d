"""Sequences that wait, in the order in which they are to be served.

Each tenant has a lane, in the policy's order. The next to be served is the first in the lane of the
tenant that has been served least (fairness.py); with one tenant, that is the policy's order.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain, count, takewhile

from scheduler.core.fairness import Account
from scheduler.core.policy import Order
from scheduler.core.sequence import Sequence

_FEW = 16


def _order(sequence: Sequence) -> Order:
    return sequence.order


class _Lane:
    """One tenant's sequences, sorted; gone when it is empty."""

    __slots__ = ("account", "num_tokens", "sequences")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.sequences: list[Sequence] = []
        self.num_tokens = 0


class WaitingQueue:
    """Lanes by tenant: orders never change, so insertion and removal are one bisection each, and
    counters only grow, so the least served one is on top of a heap whose keys catch up lazily."""

    def __init__(self) -> None:
        self._lanes: dict[Account, _Lane] = {}
        self._heap: list[tuple[float, int, _Lane]] = []
        """With keys that may be too small, and lanes that are empty."""
        self._serials = count()
        self._length = 0
        self.num_tokens = 0
        """Tokens to compute for everyone here, as estimated when each was queued."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """Everyone, in the policy's order."""
        lanes = (lane.sequences for lane in self._lanes.values())
        return iter(sorted(chain.from_iterable(lanes), key=_order))

    @property
    def num_tenants(self) -> int:
        return len(self._lanes)

    def tenants(self) -> Iterator[Account]:
        """Whoever has a sequence here."""
        return iter(self._lanes)

    def num_sequences_of(self, account: Account | None) -> int:
        """Sequences of a tenant here; 0 without an account."""
        lane = None if account is None else self._lanes.get(account)
        return 0 if lane is None else len(lane.sequences)

    def num_tokens_of(self, account: Account | None) -> int:
        """Tokens to compute for a tenant here; 0 without an account."""
        lane = None if account is None else self._lanes.get(account)
        return 0 if lane is None else lane.num_tokens

    def first(self) -> Sequence:
        """Who is next; the queue must not be empty."""
        heap = self._heap
        while True:
            served, serial, lane = heap[0]
            if not lane.sequences:
                heapq.heappop(heap)
            elif served < lane.account.served:
                heapq.heapreplace(heap, (lane.account.served, serial, lane))
            else:
                return lane.sequences[0]

    def family(self, head: Sequence) -> list[Sequence]:
        """The first of a lane, and the samples of its request that follow it."""
        lane = self._lanes[head.account]
        return list(takewhile(lambda s: s.request is head.request, lane.sequences))

    def num_tokens_before(self, sequence: Sequence) -> int:
        """About how many tokens are computed here before one that comes now has its turn: its own
        tenant's, and of every other tenant's no more than its own will be served meanwhile."""
        own = self.num_tokens_of(sequence.account)
        num_others = len(self._lanes) - (sequence.account in self._lanes)
        theirs = min(self.num_tokens - own, (own + sequence.num_known_tokens) * num_others)
        return own + theirs

    def push(self, sequence: Sequence, num_tokens: int) -> None:
        """Queue a sequence that needs about `num_tokens` computed."""
        assert sequence.queue is None, "the sequence waits elsewhere"
        sequence.queue = self
        sequence.num_queued_tokens = num_tokens
        account = sequence.account
        lane = self._lanes.get(account)
        if lane is None:
            lane = self._lanes[account] = _Lane(account)
            heapq.heappush(self._heap, (account.served, next(self._serials), lane))
        insort(lane.sequences, sequence, key=_order)
        lane.num_tokens += num_tokens
        self.num_tokens += num_tokens
        self._length += 1

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out of the queue; it must be here."""
        assert sequence.queue is self, "the sequence waits elsewhere"
        sequence.queue = None
        lane = self._lanes[sequence.account]
        del lane.sequences[bisect_left(lane.sequences, sequence.order, key=_order)]
        lane.num_tokens -= sequence.num_queued_tokens
        self.num_tokens -= sequence.num_queued_tokens
        self._length -= 1
        if not lane.sequences:
            del self._lanes[sequence.account]
            if len(self._heap) > _FEW + 2 * len(self._lanes):
                self._heap = [entry for entry in self._heap if entry[2].sequences]
                heapq.heapify(self._heap)

    def take_all(self) -> list[Sequence]:
        """Empty the queue; returns everyone in the policy's order."""
        sequences = list(self)
        for sequence in sequences:
            self.remove(sequence)
        return sequences

    def check_integrity(self) -> None:
        """Raises AssertionError unless sorted and summed up."""
        everyone = list(self)
        assert len(everyone) == self._length, "the queue is miscounted"
        assert all(sequence.queue is self for sequence in everyone), "it waits elsewhere"
        for account, lane in self._lanes.items():
            orders = [sequence.order for sequence in lane.sequences]
            assert orders == sorted(set(orders)), "a lane is out of order"
            assert orders, "an empty lane is kept"
            assert all(s.account is account for s in lane.sequences), "it is in another's lane"
            total = sum(sequence.num_queued_tokens for sequence in lane.sequences)
            assert total == lane.num_tokens, "a lane's tokens are miscounted"
        assert sum(lane.num_tokens for lane in self._lanes.values()) == self.num_tokens
        assert len(self._heap) <= _FEW + 2 * len(self._lanes) + 1, "empty lanes are kept"
        if everyone:
            least = min(account.served for account in self._lanes)
            assert self.first().account.served == least, "another tenant was served less"
