"""Suspects, and how it is found out which of them workers are lost for.

A sequence that `max_losses` lost workers are blamed on (blame.py) is a suspect, and suspects are
computed apart, on one replica that is reserved for that, while everyone else goes on elsewhere:

    blamed too often ──▶ waiting ──the replica is empty──▶ on trial ──progress──▶ acquitted
                          ▲   ▲                              │ │ │
                          │   └──────the replica leaves──────┘ │ └──the worker is lost, one
                          └──the worker is lost, several did it┘    request was on trial──▶ it ends

They are tried in groups, since most losses are nobody's doing, and a request that is poison is one
among many: an eighth of those whom a loss made suspects at a time. A group that makes progress is
acquitted as a whole; of one that loses its worker an eighth is tried next, and so on. Only who was
alone from the beginning of a trial to the loss of its worker is a culprit, and ends; that explains
every loss it may have been why, and whoever is suspected for nothing else is released at once. So
among n suspects a culprit costs ⌈log₈ n⌉ workers (one, if n is 1), and if there is none everyone is
acquitted after at most eight trials.

Samples of one request are tried together: they share what may be poisonous. The newest requests are
tried first: what has run for long has done no harm for long. The next replica that attaches is
reserved (as a rule the one that was lost, started anew, and empty), or after some patience one that
serves: what it has goes elsewhere.
"""

from itertools import count
from math import ceil

from scheduler.core.blame import Loss
from scheduler.core.events import Request
from scheduler.core.replica import Replica
from scheduler.core.replicas import Replicas
from scheduler.core.sequence import Sequence
from scheduler.core.waiting import WaitingQueue

PARTS = 8
"""Groups that those whom one loss made suspects are divided into. More of them lose fewer workers
to a culprit, and take longer where there is none (bench/suspects.py)."""

_NO_LOSS = Loss(number=0, in_trial=False, num_suspects=1)


class Quarantine:
    """Suspects that wait for their trial, and the replica that is reserved for it, if any."""

    def __init__(self, replicas: Replicas, *, max_losses: int, patience_s: float) -> None:
        self.waiting = WaitingQueue()
        self.replica: Replica | None = None
        self._replicas = replicas
        self._max_losses = max_losses
        self._patience_s = patience_s
        self._was_started = False
        """There was a trial on the reserved replica: what it had before is out of its plans."""
        self._alone: Request | None = None
        """The one request on trial, if no other was since the trial began."""
        self._since = 0.0
        self._loss_numbers = count(1)

    @property
    def is_active(self) -> bool:
        """Somebody is suspected, or was until a moment ago."""
        return self.replica is not None or len(self.waiting) > 0

    @property
    def num_suspects(self) -> int:
        """Sequences that wait for their trial or are on it."""
        replica = self.replica
        on_trial = 0 if replica is None else replica.slots.num_running + len(replica.queue)
        return len(self.waiting) + on_trial

    def lose(
        self,
        lost: Replica,
        aboard: list[tuple[Sequence, int]],
        displaced: list[Sequence],
        now: float,
    ) -> list[Sequence]:
        """A replica is gone. Those `aboard`, whom its plans computed up to so many positions, are
        blamed; the `displaced`, which it had, wait again, as suspects or not. Returns the culprits:
        samples of the one request that was on trial."""
        in_trial = self.replica is lost and self._was_started
        is_alone = in_trial and self._alone is not None
        if self.replica is lost:
            self._set_free(now)
        blamed = self._blame(aboard, in_trial)
        suspects = [*blamed, *displaced] if in_trial else blamed
        suspected = {id(sequence.request) for sequence in suspects}
        apart = [s for s in displaced if id(s.request) in suspected]
        here = {id(sequence) for sequence in displaced}
        apart += [s for s in blamed if id(s) not in here and self._pull(s)]
        self._take_in(apart, now)
        self._replicas.place([s for s in displaced if id(s.request) not in suspected])
        if not is_alone or not blamed:
            return []
        self._explain(blamed)
        return blamed

    def _blame(self, aboard: list[tuple[Sequence, int]], in_trial: bool) -> list[Sequence]:
        """Returns those who are suspects now."""
        loss = Loss(next(self._loss_numbers), in_trial)
        for sequence, num_reached in aboard:
            sequence.blame.note(loss, sequence.num_known_tokens, num_reached)
        blamed = [s for s, _ in aboard if s.blame.is_suspicious(self._max_losses)]
        loss.num_suspects = max(1, len({id(sequence.request) for sequence in blamed}))
        return blamed

    def _explain(self, culprits: list[Sequence]) -> None:
        """These samples of one request are why: who is suspected of nothing else goes on."""
        for sequence in culprits:
            sequence.blame.explain()
        kept = {id(culprits[0].request)}
        kept |= {id(s.request) for s in self.waiting if s.blame.is_suspicious(self._max_losses)}
        released = [s for s in self.waiting if id(s.request) not in kept]
        for sequence in released:
            self.waiting.remove(sequence)
        self._replicas.place(released)

    def _set_free(self, now: float) -> None:
        self.replica = None
        self._was_started = False
        self._alone = None
        self._since = now

    def _take_in(self, sequences: list[Sequence], now: float) -> None:
        """Waiting sequences that nobody queues are to be tried."""
        if sequences and not self.is_active:
            self._since = now
        for sequence in sequences:
            sequence.replica = None
            self.waiting.push(sequence, sequence.num_known_tokens)

    def _pull(self, sequence: Sequence) -> bool:
        """Take a sequence away from wherever it is by now; False: it is apart already."""
        home = self._replicas.home(sequence)
        if sequence.queue is self.waiting or (home is not None and home.is_reserved):
            return False
        if sequence.queue is not None:
            sequence.queue.remove(sequence)
        elif home is not None:
            home.withdraw(sequence)
        return True

    def reserve(self, replica: Replica) -> bool:
        """Reserve a replica if there is none and it could hold a suspect; tells whether it was."""
        if self.replica is not None:
            return False
        if not any(replica.can_hold(sequence.request) for sequence in self.waiting):
            return False
        self.replica = replica
        replica.is_reserved = True
        return True

    def prepare(self, replica: Replica, now: float) -> None:
        """It is about to be asked for a plan: reserve it if no replica came anew for too long, and
        see that the reserved one has a trial."""
        if not self.is_active:
            return
        if self._is_impatient(now) and self.reserve(replica):
            running = replica.slots.running()
            for sequence in running:
                replica.withdraw(sequence)
            displaced = [*running, *replica.queue.take_all()]
            self._replicas.place(sorted(displaced, key=lambda s: s.order))
            self._replicas.note_moved()
        if self.replica is replica and replica.is_empty and not self._start_trial(replica, now):
            self._replicas.place_unplaced()
            self._replicas.note_moved()

    def _is_impatient(self, now: float) -> bool:
        waits = self.replica is None and len(self.waiting) > 0
        return waits and now - self._since >= self._patience_s

    def _start_trial(self, replica: Replica, now: float) -> bool:
        """Queue the next suspects at the reserved replica, which is empty. False: it is open to
        everyone again, since it could hold none."""
        group = self._next_group(replica)
        if not group:
            replica.is_reserved = False
            self._set_free(now)
            return False
        self._was_started = True
        self._alone = (
            group[0].request if all(s.request is group[0].request for s in group) else None
        )
        for sequence in group:
            self.waiting.remove(sequence)
            replica.enqueue(sequence)
        return True

    def _next_group(self, replica: Replica) -> list[Sequence]:
        """A part of those whom the newest loss made suspects, as far as the replica could hold
        each of them; in order."""
        families: dict[int, list[Sequence]] = {}
        for sequence in self.waiting:
            if replica.can_hold(sequence.request):
                families.setdefault(id(sequence.request), []).append(sequence)
        if not families:
            return []
        newest = {name: _newest_loss(family) for name, family in families.items()}
        last = max(newest.values(), key=lambda loss: loss.number)
        pool = [families[name] for name, loss in newest.items() if loss is last]
        return [s for family in pool[-ceil(last.num_suspects / PARTS) :] for s in family]

    def acquit(self, replica: Replica) -> None:
        """It has confirmed a step: those on trial go where everyone goes, if it was here and all
        of them that run have made progress enough."""
        if not replica.is_reserved:
            return
        running = replica.slots.running()
        num_tokens = replica.slots.num_tokens
        if not running or any(num_tokens[s.slot] < s.blame.cleared_at for s in running):
            return
        for sequence in running:
            replica.withdraw(sequence)
            sequence.blame.clear()
        self._replicas.place(running)
        self._replicas.note_moved()

    def check_integrity(self) -> None:
        """Raises AssertionError unless suspects are apart."""
        self.waiting.check_integrity()
        assert all(s.replica is None for s in self.waiting), "a suspect has a home"
        if self.replica is not None:
            assert self.replica.is_reserved, "a replica with suspects is open to others"
            tried = [*self.replica.queue, *self.replica.slots.running()]
            assert self._alone is None or all(s.request is self._alone for s in tried), (
                "who is tried alone is not alone"
            )


def _newest_loss(family: list[Sequence]) -> Loss:
    """Of the samples of one request; those that nothing is said against are here for one of them
    that has ended."""
    losses = [loss for sequence in family for loss in sequence.blame.losses]
    return max(losses, key=lambda loss: loss.number, default=_NO_LOSS)
