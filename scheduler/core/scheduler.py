"""The scheduling core: a pure function of its events.

Routers' events (`accept`, `abort`, `finish`, `drop_router`), replicas' events (`attach`, `detach`),
the passing of time (`expire`) and the step loop (`schedule`, `apply`) come in with the time they
happened; plans and outputs go out. Each accepted sequence ends in exactly one `Finished`. There is
no clock, no I/O and no randomness here, so the same events always give the same decisions.

Sequences live in one registry; each one waits in one queue (at a replica, for any replica, or as a
suspect) or runs in one slot of one replica.
"""

from collections.abc import Iterable
from itertools import count

from scheduler.core.acceptance import check_load, check_room
from scheduler.core.block_hash import BlockHasher
from scheduler.core.config import CoreConfig
from scheduler.core.deadlines import Deadlines
from scheduler.core.decisions import Finished, Outputs, Plan
from scheduler.core.events import Capacity, FinishReason, Inventory, Request, StepResult
from scheduler.core.fairness import Accounts
from scheduler.core.integrity import check_core
from scheduler.core.planner import Planner
from scheduler.core.policy import order_key
from scheduler.core.quarantine import Quarantine
from scheduler.core.registry import Registry
from scheduler.core.replica import Replica
from scheduler.core.replicas import Replicas
from scheduler.core.report import core_state
from scheduler.core.results import confirm
from scheduler.core.sequence import Sequence, Status
from scheduler.core.state import CoreState, Counters, Ends
from scheduler.core.throughput import OutputLength

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
        self._sequences = Registry()
        self._replicas = Replicas()
        self._quarantine = Quarantine(
            self._replicas, max_losses=config.max_losses, patience_s=config.trial_patience_s
        )
        self._detached = Counters()
        """Totals of replicas that are gone."""
        self._deadlines = Deadlines()
        self._output_length = OutputLength()
        self._ends = Ends()

    @property
    def orders_by_priority(self) -> bool:
        """Whether a request's priority changes anything."""
        return self._config.policy == "priority"

    # ---- routers

    def accept(self, request: Request, now: float) -> Outputs:
        """Queue the samples of a request. Raises Refused, and then nothing of it is kept."""
        self._sequences.check_free(request)
        replicas = list(self._replicas)
        check_room(request, replicas)
        check_load(
            request,
            replicas,
            [*self._replicas.queues(), self._quarantine.waiting],
            self._config,
            account=self._accounts.find(request.tenant),
            mean_output_tokens=self._output_length.mean,
        )
        samples = self._make_samples(request, now)
        self._sequences.add(samples)
        if request.deadline_s > 0:
            for sequence in samples:
                self._deadlines.add(sequence, now + request.deadline_s)
        self._replicas.place(samples)
        if 0 < request.max_tokens == len(request.token_ids) - request.num_prompt_tokens:
            return self._end_all(samples, FinishReason.LENGTH, now)
        return Outputs()

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
        sequence = self._sequences.find(router, sequence_id)
        return Outputs() if sequence is None else self._end_all([sequence], FinishReason.ABORT, now)

    def finish(self, router: int, sequence_id: int, num_tokens: int, now: float) -> Outputs:
        """A stop string ended the sequence after `num_tokens` of output; what came later is
        over-run and not kept in the cache. Nothing happens if the sequence has ended."""
        sequence = self._sequences.find(router, sequence_id)
        if sequence is None:
            return Outputs()
        replica = self._replicas.home(sequence)
        if replica is not None:
            replica.prefixes.forget_after(sequence, sequence.request.num_prompt_tokens + num_tokens)
        finished = self._end(sequence, FinishReason.STOP, now, max_output_tokens=num_tokens)
        return Outputs(finished=(finished,))

    def drop_router(self, router: int, now: float) -> Outputs:
        """The router's stream ended: so do its sequences."""
        return self._end_all(self._sequences.of_router(router), FinishReason.ABORT, now)

    def expire(self, now: float) -> Outputs:
        """Time has passed: sequences whose deadline has come end, be they queued or running, with
        the tokens that they have. Nothing happens if there are none."""
        finished = []
        for sequence in self._deadlines.due(now):
            self._ends.num_expired += 1
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
        that is believed and kept; if so, everyone who waits is placed anew. What the replica cannot
        hold goes on waiting for one that can. Raises ValueError if the name is attached."""
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
        self._replicas.add(attached)
        if not self._quarantine.reserve(attached) and keeps:
            self._replicas.place_waiting()
        else:
            self._replicas.place_unplaced()
        return keeps

    def reset_prefixes(self) -> int:
        """Forgets every cached prefix of every replica; returns how many blocks held one."""
        return sum(replica.pool.forget_all() for replica in self._replicas)

    def hash_seed(self, replica: str) -> bytes:
        """Under which this replica's blocks are named: for the scheduler after this one. Raises
        KeyError if it is not attached."""
        return self._replicas[replica].prefixes.seed

    def detach(self, replica: str, now: float, *, blame: bool) -> Outputs:
        """The replica is gone: its sequences return to queues with every confirmed token. With
        `blame` those which a plan in flight computed may be why: who is blamed too often is tried
        alone, and who was alone is the culprit and ends. Nothing happens if no such replica is
        attached."""
        lost = self._replicas.remove(replica)
        if lost is None:
            return Outputs()
        aboard = lost.aboard() if blame else []
        running = lost.abandon()
        lost.counters.num_replays += len(running)
        self._detached.add(lost.counters)
        displaced = sorted([*running, *lost.queue.take_all()], key=lambda s: s.order)
        return self._convict(self._quarantine.lose(lost, aboard, displaced, now), now)

    def _convict(self, alone: list[Sequence], now: float) -> Outputs:
        """The worker was lost while it computed these samples of one request and nothing else:
        every sample ends."""
        if not alone:
            return Outputs()
        samples = self._sequences.samples(alone[0].request)
        num_losses = max(len(s.blame.losses) for s in alone)
        message = (
            f"the worker was lost {num_losses} times while it computed this request, at last with"
            " no other request beside it"
        )
        self._ends.num_convicted += len(samples)
        return self._end_all(samples, FinishReason.ERROR, now, message=message)

    def schedule(self, replica: str, now: float) -> Plan | None:
        """The next plan for a replica, which counts as sent; None if there is nothing to do before
        the next event. Raises KeyError if no such replica is attached."""
        planned = self._replicas[replica]
        self._quarantine.prepare(planned, now)
        self._replicas.steal_for(planned)
        return Planner(planned, now).plan()

    def apply(self, replica: str, result: StepResult, now: float) -> Outputs:
        """The result of the replica's oldest plan in flight. Raises KeyError if no such replica is
        attached, WrongResult if its plan cannot have it."""
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
        self._quarantine.acquit(home)
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
            self._replicas.place([sequence], avoid=home)
            self._replicas.note_moved()
        return True

    def take_moved(self) -> bool:
        """Whether `apply` or `schedule` has queued sequences at other replicas than their own since
        this was asked last: those may have something to do now."""
        return self._replicas.take_moved()

    # ---- what it knows

    def state(self) -> CoreState:
        """Totals, and each replica's."""
        return core_state(self._replicas, self._quarantine, self._ends, self._detached)

    def check_integrity(self) -> None:
        """Raises AssertionError unless everything the core holds is consistent."""
        check_core(self._sequences, self._replicas, self._quarantine, self._accounts)

    # ---- ends

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
            replica = self._replicas.home(sequence)
            assert replica is not None, "a running sequence has a replica"
            replica.release(sequence)
        sequence.move(Status.FINISHED)
        self._accounts.close(sequence.account)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._output_length.observe(sequence.num_output_tokens)
        if sequence.request.deadline_s > 0:
            self._deadlines.note_end()
        self._sequences.remove(sequence)
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
