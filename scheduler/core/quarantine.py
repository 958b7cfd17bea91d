"""Who may be why workers are lost, and how that is found out.

A worker that is lost with plans in flight may have been lost for any sequence that those plans
computed. Each of them is blamed once; what clears it is progress: a token confirmed well beyond
where it was when the worker was lost, since computing the same again would have done the same
harm. A sequence blamed `max_crashes` times is a suspect, and suspects are computed apart:

    blamed too often ──▶ waiting ──the replica is empty──▶ on trial ──progress──▶ acquitted
                            ▲                                 │ └──the worker is lost──▶ it ends
                            └──────the replica leaves─────────┘

One request at a time is on trial, alone on one replica that is reserved for that, so that whoever
is the culprit costs nobody else a worker. The samples of a request are tried together: they share
what may be poisonous. The next replica that attaches is reserved (as a rule the one that was lost,
started anew, and empty), or after some patience one that serves: what it has goes elsewhere.

The progress asked for doubles with every loss, so a request under which workers keep dying is in
the end computed alone as a whole.
"""

from scheduler.core.replica import Replica
from scheduler.core.replicas import Replicas
from scheduler.core.sequence import Sequence
from scheduler.core.waiting import WaitingQueue

CLEARING_TOKENS = 8
"""After its first loss a sequence is cleared by progress of so many tokens."""


def note_loss(sequence: Sequence, num_reached: int) -> None:
    """A worker was lost while its plans computed the first `num_reached` positions of a sequence.
    What is known of one that runs elsewhere by now is a little old, which does it no harm."""
    known = sequence.num_known_tokens
    if known >= sequence.cleared_at:
        sequence.num_crashes = 0
    sequence.num_crashes += 1
    margin = CLEARING_TOKENS << min(sequence.num_losses, 32)
    sequence.num_losses += 1
    sequence.cleared_at = max(known + 1, num_reached + margin)


class Quarantine:
    """Suspects that wait for their trial, and the replica that is reserved for it, if any."""

    def __init__(self, replicas: Replicas, *, max_crashes: int, patience_s: float) -> None:
        self.waiting = WaitingQueue()
        self.replica: Replica | None = None
        self._replicas = replicas
        self._max_crashes = max_crashes
        self._patience_s = patience_s
        self._was_started = False
        """There was a trial on the reserved replica: what it had before is out of its plans."""
        self._since = 0.0

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
        samples of one request that were on trial."""
        for sequence, num_reached in aboard:
            note_loss(sequence, num_reached)
        if self._lose_replica(lost, now):
            self._take_in(displaced, now)
            return [sequence for sequence, _ in aboard]
        blamed = [s for s, _ in aboard if s.num_crashes >= self._max_crashes]
        suspected = {id(sequence.request) for sequence in blamed}
        apart = [s for s in displaced if id(s.request) in suspected]
        here = {id(sequence) for sequence in displaced}
        apart += [s for s in blamed if id(s) not in here and self._pull(s)]
        self._take_in(apart, now)
        self._replicas.place([s for s in displaced if id(s.request) not in suspected])
        return []

    def _lose_replica(self, replica: Replica, now: float) -> bool:
        """Tells whether it was the reserved one and all that its plans computed was on trial."""
        if self.replica is not replica:
            return False
        was_trying = self._was_started
        self._set_free(now)
        return was_trying

    def _set_free(self, now: float) -> None:
        self.replica = None
        self._was_started = False
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
        first = next((s for s in self.waiting if replica.can_hold(s.request)), None)
        if first is None:
            replica.is_reserved = False
            self._set_free(now)
            return False
        self._was_started = True
        for sequence in [s for s in self.waiting if s.request is first.request]:
            self.waiting.remove(sequence)
            replica.enqueue(sequence)
        return True

    def acquit(self, replica: Replica) -> None:
        """It has confirmed a step: those on trial go where everyone goes, if it was here and all
        of them have made progress enough."""
        if not replica.is_reserved:
            return
        running = replica.slots.running()
        num_tokens = replica.slots.num_tokens
        if (
            not running
            or len(replica.queue)
            or any(num_tokens[s.slot] < s.cleared_at for s in running)
        ):
            return
        for sequence in running:
            replica.withdraw(sequence)
            sequence.num_crashes = 0
        self._replicas.place(running)
        self._replicas.note_moved()

    def check_integrity(self) -> None:
        """Raises AssertionError unless suspects are apart."""
        self.waiting.check_integrity()
        assert all(s.replica is None for s in self.waiting), "a suspect has a home"
        if self.replica is not None:
            assert self.replica.is_reserved, "a replica with suspects is open to others"
            tried = [*self.replica.queue, *self.replica.slots.running()]
            assert len({id(s.request) for s in tried}) < 2, "two suspects are tried together"
