"""The attached replicas, by name, and the sequences that wait until one of them can hold them."""

from collections.abc import Iterator
from itertools import groupby

from scheduler.core.placement import choose, steal
from scheduler.core.replica import Replica
from scheduler.core.sequence import Sequence
from scheduler.core.waiting import WaitingQueue


class Replicas:
    """Where sequences wait and run, suspects (quarantine.py) apart."""

    def __init__(self) -> None:
        self.unplaced = WaitingQueue()
        """Accepted while no replica that could hold them is there for them."""
        self._attached: dict[str, Replica] = {}
        self._moved = False

    def __len__(self) -> int:
        return len(self._attached)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._attached.values())

    def __contains__(self, name: str) -> bool:
        return name in self._attached

    def __getitem__(self, name: str) -> Replica:
        """Raises KeyError if no such replica is attached."""
        return self._attached[name]

    def add(self, replica: Replica) -> None:
        """It has attached."""
        self._attached[replica.name] = replica

    def remove(self, name: str) -> Replica | None:
        """It is gone; None if it was not there."""
        return self._attached.pop(name, None)

    def home(self, sequence: Sequence) -> Replica | None:
        """Where a sequence waits or runs; None if that is no replica."""
        return None if sequence.replica is None else self._attached[sequence.replica]

    def queues(self) -> list[WaitingQueue]:
        """Wherever sequences wait."""
        return [self.unplaced, *(replica.queue for replica in self)]

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self.queues())

    def place(self, sequences: list[Sequence], *, avoid: Replica | None = None) -> None:
        """Queue waiting sequences, given in order, each request at one replica; those that none
        can take now wait for one that can. One replica may be avoided if there are others."""
        for _, group in groupby(sequences, key=lambda sequence: id(sequence.request)):
            family = list(group)
            replica = choose(self, family[0], avoid)
            for sequence in family:
                if replica is None:
                    sequence.replica = None
                    self.unplaced.push(sequence, sequence.num_known_tokens)
                else:
                    replica.enqueue(sequence)

    def place_unplaced(self) -> None:
        """Some replica may now take those that none could."""
        self.place(self.unplaced.take_all())

    def place_waiting(self) -> None:
        """A replica has come with what it computed before: whoever waits may wait better there.
        Suspects stay, and who waits where it does for a reason: away from the replica whose output
        was not finite, or with samples of its request that run."""
        waiting = self.unplaced.take_all()
        for replica in self:
            if replica.is_reserved:
                continue
            running = {id(sequence.request) for sequence in replica.slots.running()}
            for sequence in list(replica.queue):
                if not sequence.was_replayed and id(sequence.request) not in running:
                    replica.queue.remove(sequence)
                    waiting.append(sequence)
        self.place(sorted(waiting, key=lambda sequence: sequence.order))

    def steal_for(self, thief: Replica) -> None:
        """Fill its empty queue from the others', as far as it could admit at once."""
        steal(thief, self._attached.values())

    def note_moved(self) -> None:
        """Sequences were queued at other replicas than the one that is asked for a plan or had a
        result."""
        self._moved = True

    def take_moved(self) -> bool:
        """Whether that was noted since this was asked last: those may have something to do now."""
        moved, self._moved = self._moved, False
        return moved

    def check_integrity(self) -> None:
        """Raises AssertionError unless everyone waits where it says."""
        self.unplaced.check_integrity()
        assert all(s.replica is None for s in self.unplaced), "an unplaced sequence has a home"
        for replica in self:
            assert all(s.replica == replica.name for s in replica.queue), (
                "a sequence waits elsewhere"
            )
