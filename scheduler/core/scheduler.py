"""The scheduling core: a pure function of its events.

Routers' events (`accept`, `abort`, `finish`, `drop_router`), replicas' events (`attach`, `detach`),
the passing of time (`expire`) and the step loop (`schedule`, `apply`) come in with the time they
happened; plans and outputs go out. Each accepted sequence ends in exactly one `Finished`. There is
no clock, no I/O and no randomness here, so the same events always give the same decisions.

Sequences live in one registry; each one waits in one queue or runs in one slot of one replica.
"""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import count, groupby

from scheduler.core.acceptance import check_room
from scheduler.core.block_hash import BlockHasher
from scheduler.core.config import CoreConfig
from scheduler.core.deadlines import Deadlines
from scheduler.core.decisions import Finished, Outputs, Plan
from scheduler.core.events import Capacity, FinishReason, Inventory, Refused, Request, StepResult
from scheduler.core.fairness import Accounts
from scheduler.core.integrity import check_replica
from scheduler.core.placement import choose, steal
from scheduler.core.planner import Planner
from scheduler.core.policy import order_key
from scheduler.core.quarantine import Quarantine, note_loss
from scheduler.core.replica import Replica
from scheduler.core.results import confirm
from scheduler.core.sequence import Sequence, Status
from scheduler.core.state import CoreState, Counters
from scheduler.core.throughput import OutputLength, wait_s
from scheduler.core.waiting import WaitingQueue

_NOT_FINITE = "the model's output was not finite"
_NO_TOKEN = f"{_NOT_FINITE}, or the request's own rules left no token that could come"


class Scheduler:
    """Every decision of one cell."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._hasher = BlockHasher(config.hash_seed)
        self._order_key = order_key(config)
        self._accounts = Accounts(config.input_token_weight, config.output_token_weight)
        self._has_attached = False
        self._serials = count()
        self._replicas: dict[str, Replica] = {}
        self._unplaced = WaitingQueue()
        """Accepted while no replica that could hold them is there for them."""
        self._quarantine = Quarantine(config.trial_patience_s)
        self._sequences: dict[int, dict[int, Sequence]] = {}
        """Every sequence that has not ended: by router, then by the router's id."""
        self._detached = Counters()
        """Totals of replicas that are gone."""
        self._deadlines = Deadlines()
        self._output_length = OutputLength()
        self._num_convicted = 0
        self._num_expired = 0
        self._moved = False

    @property
    def orders_by_priority(self) -> bool:
        """Whether a request's priority changes anything."""
        return self._config.policy == "priority"

    # ---- routers

    def accept(self, request: Request, now: float) -> Outputs:
        """Queue the samples of a request. Raises Refused, and then nothing of it is kept."""
        check_room(request, self._replicas.values())
        mine = self._sequences.get(request.router, {})
        ids = range(request.sequence_id, request.sequence_id + request.num_samples)
        taken = next((i for i in ids if i in mine), None)
        if taken is not None:
            raise Refused(f"sequence_id {taken} is in flight already", field="sequence_id")
        self._check_load(request)
        samples = self._make_samples(request, now)
        self._sequences.setdefault(request.router, {}).update(zip(ids, samples, strict=True))
        if request.deadline_s > 0:
            for sequence in samples:
                self._deadlines.add(sequence, now + request.deadline_s)
        self._place(samples)
        if 0 < request.max_tokens == len(request.token_ids) - request.num_prompt_tokens:
            return self._end_all(samples, FinishReason.LENGTH, now)
        return Outputs()

    def _check_load(self, request: Request) -> None:
        """Raises Refused if too much is queued already. What was accepted once is never refused,
        and nothing is for its size alone."""
        config, num_waiting = self._config, self._num_waiting()
        is_new = not request.resubmitted and len(request.token_ids) == request.num_prompt_tokens
        if num_waiting == 0 or not is_new:
            return
        num_queued_tokens = sum(queue.num_tokens for queue in self._queues())
        num_tokens = len(request.token_ids) * request.num_samples
        if num_waiting + request.num_samples > config.max_queued:
            message = f"{num_waiting} sequences are queued; the limit is {config.max_queued}"
        elif num_queued_tokens + num_tokens > config.max_queued_tokens:
            message = (
                f"{num_queued_tokens} tokens are queued and this request has {num_tokens};"
                f" the limit is {config.max_queued_tokens}"
            )
        else:
            return
        speed = sum(replica.throughput.tokens_per_s for replica in self._replicas.values())
        backlog = num_queued_tokens + num_waiting * self._output_length.mean
        raise Refused(message, invalid=False, retry_after_s=wait_s(backlog, speed))

    def _make_samples(self, request: Request, now: float) -> list[Sequence]:
        serials = [next(self._serials) for _ in range(request.num_samples)]
        return [
            Sequence(
                request=request,
                sequence_id=request.sequence_id + i,
                seed=(request.seed + i) % 2**64,
                order=self._order_key(request, now, serial),
                accepted_at=now,
                account=self._accounts.open(request.tenant),
                private=None if self._config.enable_prefix_caching else serials[0],
                score_from=None if i > 0 else _score_from(request),
            )
            for i, serial in enumerate(serials)
        ]

    def abort(self, router: int, sequence_id: int, now: float) -> Outputs:
        """The client left. Nothing happens if the sequence has ended."""
        sequence = self._find(router, sequence_id)
        return Outputs() if sequence is None else self._end_all([sequence], FinishReason.ABORT, now)

    def finish(self, router: int, sequence_id: int, num_tokens: int, now: float) -> Outputs:
        """A stop string ended the sequence after `num_tokens` of output; what came later is
        over-run and not kept in the cache. Nothing happens if the sequence has ended."""
        sequence = self._find(router, sequence_id)
        if sequence is None:
            return Outputs()
        replica = self._home(sequence)
        if replica is not None:
            replica.forget_after(sequence, sequence.request.num_prompt_tokens + num_tokens)
        finished = self._end(sequence, FinishReason.STOP, now, max_output_tokens=num_tokens)
        return Outputs(finished=(finished,))

    def drop_router(self, router: int, now: float) -> Outputs:
        """The router's stream ended: so do its sequences."""
        sequences = list(self._sequences.get(router, {}).values())
        return self._end_all(sequences, FinishReason.ABORT, now)

    def expire(self, now: float) -> Outputs:
        """Time has passed: sequences whose deadline has come end, be they queued or running, with
        the tokens that they have. Nothing happens if there are none."""
        finished = []
        for sequence in self._deadlines.due(now):
            self._num_expired += 1
            message = f"timeout is {sequence.request.deadline_s:g} s; it passed "
            if sequence.admitted_at is None:
                message += "before the request's turn came"
            else:
                message += "before the request was complete"
            finished.append(self._end(sequence, FinishReason.TIMEOUT, now, message=message))
        return Outputs(finished=tuple(finished))

    def next_deadline(self) -> float | None:
        """When `expire` will have something to do; None if nobody has a deadline."""
        return self._deadlines.next_at()

    # ---- replicas

    def attach(self, replica: str, capacity: Capacity, inventory: Inventory | None = None) -> bool:
        """A replica is there. Its cache is empty, or holds what an inventory says: tells whether
        that is believed and kept. What the replica cannot hold goes on waiting for one that can.
        Raises ValueError if the name is attached."""
        if replica in self._replicas:
            raise ValueError(f"replica {replica} is attached already")
        keeps = bool(inventory) and self._config.enable_prefix_caching and capacity.num_blocks > 0
        hasher = self._hasher
        if inventory is not None and keeps and inventory.hash_seed != hasher.seed:
            hasher = BlockHasher(inventory.hash_seed)
            if not self._has_attached:
                self._hasher = hasher  # of the scheduler before this one: its replicas share it
        self._has_attached = True
        attached = Replica(replica, capacity, self._config, hasher, self._accounts)
        if inventory is not None and keeps:
            attached.adopt(inventory)
        self._replicas[replica] = attached
        self._quarantine.reserve(attached)
        self._place(self._unplaced.take_all())
        return keeps

    def reset_prefixes(self) -> int:
        """Forgets every cached prefix of every replica; returns how many blocks held one."""
        return sum(replica.pool.forget_all() for replica in self._replicas.values())

    def hash_seed(self, replica: str) -> bytes:
        """Under which this replica's blocks are named: for the scheduler after this one. Raises
        KeyError if it is not attached."""
        return self._replicas[replica].hash_seed

    def detach(self, replica: str, now: float, *, blame: bool) -> Outputs:
        """The replica is gone: its sequences return to queues with every confirmed token. With
        `blame` those which a plan in flight computed may be why: who is blamed too often is tried
        alone, and who was alone is the culprit and ends. Nothing happens if no such replica is
        attached."""
        lost = self._replicas.pop(replica, None)
        if lost is None:
            return Outputs()
        aboard = lost.in_flight_now() if blame else []
        running = lost.abandon()
        lost.counters.num_replays += len(running)
        self._detached.add(lost.counters)
        displaced = sorted([*running, *lost.queue.take_all()], key=lambda s: s.order)
        for sequence, num_reached in aboard:
            note_loss(sequence, num_reached)
        if self._quarantine.lose_replica(lost, now):
            self._quarantine.take_in(displaced, now)
            return self._convict([sequence for sequence, _ in aboard], now)
        blamed = [s for s, _ in aboard if s.num_crashes >= self._config.max_crashes]
        suspected = {id(sequence.request) for sequence in blamed}
        apart = [s for s in displaced if id(s.request) in suspected]
        here = {id(sequence) for sequence in displaced}
        apart += [s for s in blamed if id(s) not in here and self._pull(s)]
        self._quarantine.take_in(apart, now)
        self._place([s for s in displaced if id(s.request) not in suspected])
        return Outputs()

    def _pull(self, sequence: Sequence) -> bool:
        """Take a sequence away from wherever it is by now; False: it is apart already."""
        home = self._home(sequence)
        if sequence.queue is self._quarantine.waiting or (home is not None and home.is_reserved):
            return False
        if sequence.queue is not None:
            sequence.queue.remove(sequence)
        elif home is not None:
            home.withdraw(sequence)
        return True

    def _convict(self, alone: list[Sequence], now: float) -> Outputs:
        """The worker was lost while it computed these samples of one request and nothing else:
        every sample ends."""
        if not alone:
            return Outputs()
        request = alone[0].request
        mine = self._sequences[request.router]
        ids = range(request.sequence_id, request.sequence_id + request.num_samples)
        samples = [mine[i] for i in ids if i in mine]
        message = (
            f"the worker was lost {max(s.num_losses for s in alone)} times while it computed this"
            " request, at last with no other request beside it"
        )
        self._num_convicted += len(samples)
        return self._end_all(samples, FinishReason.ERROR, now, message=message)

    def schedule(self, replica: str, now: float) -> Plan | None:
        """The next plan for a replica, which counts as sent; None if there is nothing to do before
        the next event. Raises KeyError if no such replica is attached."""
        planned = self._replicas[replica]
        if self._quarantine.is_active:
            self._try_suspects(planned, now)
        steal(planned, self._replicas.values())
        return Planner(planned, now).plan()

    def _try_suspects(self, replica: Replica, now: float) -> None:
        """Reserve this replica if it is time to, and see that the reserved one has a trial."""
        quarantine = self._quarantine
        if quarantine.is_impatient(now) and quarantine.reserve(replica):
            running = replica.slots.running()
            for sequence in running:
                replica.withdraw(sequence)
            displaced = [*running, *replica.queue.take_all()]
            self._place(sorted(displaced, key=lambda s: s.order))
            self._moved = True
        if quarantine.replica is replica and replica.is_empty and not quarantine.start_trial(now):
            self._place(self._unplaced.take_all())
            self._moved = True

    def apply(self, replica: str, result: StepResult, now: float) -> Outputs:
        """The result of the replica's oldest plan in flight. Raises KeyError if no such replica is
        attached, ValueError if it is the result of another plan."""
        home = self._replicas[replica]
        confirmed = confirm(home, result, now)
        finished = []
        for sequence, reason in confirmed.ended:
            if reason is FinishReason.ERROR and self._replay(home, sequence):
                continue
            message = _NO_TOKEN if reason is FinishReason.ERROR else ""
            finished.append(self._end(sequence, reason, now, message=message))
        for sequence, reason, row in confirmed.embedded:
            if reason is not FinishReason.ERROR:
                finished.append(self._end(sequence, reason, now, vector_row=row))
            elif not self._replay(home, sequence):
                finished.append(self._end(sequence, reason, now, message=_NOT_FINITE))
        if home.is_reserved and (acquitted := self._quarantine.acquit()):
            self._place(acquitted)
            self._moved = True
        return Outputs(
            router=confirmed.router,
            sequence_id=confirmed.sequence_id,
            token_id=confirmed.token_id,
            result_row=confirmed.result_row,
            finished=tuple(finished),
            score_router=confirmed.score_router,
            score_sequence_id=confirmed.score_sequence_id,
            score_run=confirmed.score_run,
        )

    def _replay(self, home: Replica, sequence: Sequence) -> bool:
        """What was computed for a running sequence is not finite. The KV under it is trusted no
        more; tells whether the sequence was queued to be computed again, as it is once: elsewhere
        if there is another replica for it, unless it has to stay apart."""
        home.distrust(sequence)
        if sequence.was_replayed:
            return False
        sequence.was_replayed = True
        home.counters.num_distrusted += 1
        home.withdraw(sequence)
        if home.is_reserved:
            home.enqueue(sequence)
        else:
            self._place([sequence], avoid=home)
            self._moved = True
        return True

    def take_moved(self) -> bool:
        """Whether `apply` or `schedule` has queued sequences at other replicas than their own since
        this was asked last: those may have something to do now."""
        moved, self._moved = self._moved, False
        return moved

    def in_flight(self, replica: str) -> int:
        """Plans sent to the replica without a result. Raises KeyError if it is not attached."""
        return len(self._replicas[replica].sent)

    # ---- what it knows

    def state(self) -> CoreState:
        """Totals, and each replica's."""
        replicas = tuple(replica.state() for replica in self._replicas.values())
        totals = Counters()
        totals.add(self._detached)
        for replica in self._replicas.values():
            totals.add(replica.counters)
        return CoreState(
            replicas=replicas,
            num_blocks_total=sum(state.num_blocks_total for state in replicas),
            num_blocks_free=sum(state.num_blocks_free for state in replicas),
            num_blocks_cached=sum(state.num_blocks_cached for state in replicas),
            num_blocks_used=sum(state.num_blocks_used for state in replicas),
            num_blocks_limbo=sum(state.num_blocks_limbo for state in replicas),
            num_running=sum(state.num_running for state in replicas),
            num_waiting=self._num_waiting(),
            num_suspects=self._quarantine.num_suspects,
            num_convicted=self._num_convicted,
            num_expired=self._num_expired,
            num_wasted_token_slots=sum(state.num_wasted_token_slots for state in replicas),
            **asdict(totals),
        )

    def check_integrity(self) -> None:
        """Raises AssertionError unless everything the core holds is consistent."""
        for replica in self._replicas.values():
            check_replica(replica)
        self._unplaced.check_integrity()
        self._quarantine.check_integrity()
        self._accounts.check_integrity()
        open_accounts = {id(s.account) for mine in self._sequences.values() for s in mine.values()}
        assert len(open_accounts) == self._accounts.num_active, "an account is open for nobody"
        held = [sequence for queue in self._queues() for sequence in queue]
        held += [s for replica in self._replicas.values() for s in replica.slots.running()]
        known = [s for mine in self._sequences.values() for s in mine.values()]
        assert len(held) == len(known), "a sequence is held twice or by nobody"
        assert set(map(id, held)) == set(map(id, known)), "a held sequence is unknown"
        assert all(s.status is not Status.FINISHED for s in known), "an ended sequence is kept"
        assert all(self._sequences.values()), "a router without sequences is kept"
        assert all(s.replica is None for s in self._unplaced), "an unplaced sequence has a home"
        for replica in self._replicas.values():
            assert all(s.replica == replica.name for s in replica.queue), (
                "a sequence waits elsewhere"
            )

    # ---- changes of hands

    def _queues(self) -> list[WaitingQueue]:
        """Wherever sequences wait."""
        at_replicas = [replica.queue for replica in self._replicas.values()]
        return [self._unplaced, self._quarantine.waiting, *at_replicas]

    def _num_waiting(self) -> int:
        return sum(len(queue) for queue in self._queues())

    def _find(self, router: int, sequence_id: int) -> Sequence | None:
        return self._sequences.get(router, {}).get(sequence_id)

    def _home(self, sequence: Sequence) -> Replica | None:
        return None if sequence.replica is None else self._replicas[sequence.replica]

    def _place(self, sequences: list[Sequence], *, avoid: Replica | None = None) -> None:
        """Queue waiting sequences, given in order, each request at one replica; those that none
        can take now wait for one that can. One replica may be avoided if there are others."""
        for _, group in groupby(sequences, key=lambda sequence: id(sequence.request)):
            family = list(group)
            replica = choose(self._replicas.values(), family[0], avoid)
            for sequence in family:
                if replica is None:
                    sequence.replica = None
                    self._unplaced.push(sequence, sequence.num_known_tokens)
                else:
                    replica.enqueue(sequence)

    def _end_all(
        self,
        sequences: Iterable[Sequence],
        reason: FinishReason,
        now: float,
        *,
        message: str = "",
    ) -> Outputs:
        finished = [self._end(s, reason, now, message=message) for s in sequences]
        return Outputs(finished=tuple(finished))

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        *,
        max_output_tokens: int | None = None,
        message: str = "",
        vector_row: int | None = None,
    ) -> Finished:
        """The one way out for an accepted sequence."""
        if sequence.queue is not None:
            sequence.queue.remove(sequence)
        else:
            replica = self._home(sequence)
            assert replica is not None, "a running sequence has a replica"
            replica.release(sequence)
        sequence.move(Status.FINISHED)
        self._accounts.close(sequence.account)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._output_length.observe(sequence.num_output_tokens)
        if sequence.request.deadline_s > 0:
            self._deadlines.note_end()
        mine = self._sequences[sequence.request.router]
        del mine[sequence.sequence_id]
        if not mine:
            del self._sequences[sequence.request.router]
        return sequence.finished(
            reason,
            now,
            max_output_tokens=max_output_tokens,
            message=message,
            vector_row=vector_row,
        )


def _score_from(request: Request) -> int | None:
    """None if nothing is left to score."""
    score_from = request.score_from
    return None if score_from == request.num_prompt_tokens else score_from
