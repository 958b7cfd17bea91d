"""The cell: the scheduling core, told what happens and asked what to do next.

Every event ends the same way: its news goes to the routers, and the replicas it may concern are
fed, that is, given plans until enough are in flight. Nothing here waits or does I/O: a stream's
`send` queues, and one event loop calls all of it. Time comes from one monotonic clock.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from math import inf

import grpc

from scheduler.attachments import Attachment, Attachments, Rank, check_model
from scheduler.core.decisions import Outputs, failed
from scheduler.core.events import Refused, Request, WrongResult
from scheduler.core.scheduler import Scheduler
from scheduler.core.state import CoreState
from scheduler.feeding import Feeder
from scheduler.guard import Guard
from scheduler.messages import (
    CellView,
    LogprobTable,
    ModelCard,
    ReplicaView,
    Result,
    ScoreTable,
    VectorTable,
    WorkerHello,
)
from scheduler.metrics import Metrics
from scheduler.routers import Router, Routers
from scheduler.stream import Stream
from scheduler.wire import frames, workers
from scheduler.wire.columns import Malformed

logger = logging.getLogger(__name__)

_QUIET_S = 1.0


class Cell:
    """One scheduler with its routers and replicas."""

    def __init__(
        self,
        core: Scheduler,
        *,
        step_timeout_s: float,
        guard: Guard | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No step is given up before `step_timeout_s`, however quick its replica usually is."""
        self.metrics = Metrics()
        self.guard = guard or Guard()
        """Whoever calls what changes the cell does so under it."""
        self.incarnation = time.time_ns()
        self.model: ModelCard | None = None
        """What the cell serves; stays when its last replica is lost."""
        self.model_known = asyncio.Event()
        self.draining = False
        self._core = core
        self._step_timeout_s = step_timeout_s
        self._clock = clock
        self._started_at = clock()
        self._routers = Routers()
        self._attachments = Attachments()
        self._feeder = Feeder(core, self._attachments, self.metrics, self.guard, clock)
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = inf
        self._drained = asyncio.Event()
        self._last_event_at = self._started_at
        self._checked_at = self._started_at

    # ---- routers ----

    def connect(self, router_id: str, stream: Stream) -> Router:
        """A router has said hello: it is welcomed and told how the cell is."""
        stream.send(frames.encode_welcome(self.incarnation))
        router = self._routers.connect(router_id, stream)
        stream.send(frames.encode_status(self.view(), self._core.state()))
        return router

    def leave(self, router: Router) -> None:
        """A router's stream has ended: so do its sequences."""
        self._routers.leave(router)
        self._tell(self._core.drop_router(router.number, self._clock()))
        self._feeder.feed_soon()

    def announce_leave(self, router: Router) -> None:
        """A router ends itself; nobody would submit again what it has in flight."""
        self._routers.announce_leave(router)

    def submit(self, request: Request) -> None:
        """A router's request. Raises Refused."""
        if self.draining and (self._drained.is_set() or not request.resubmitted):
            message = "the scheduler is draining and accepts no new requests"
            raise Refused(message, invalid=False, reason="draining")
        if request.priority and not (self._core.orders_by_priority or request.resubmitted):
            message = (
                f"priority is {request.priority}; this server serves first come, first served, "
                "so it must be 0"
            )
            raise Refused(message, field="priority")
        try:
            outputs = self._core.accept(request, self._clock())
        except Refused:
            raise
        except Exception:
            outputs = self._give_up(request)
        self._tell(outputs)
        if request.deadline_s > 0:
            self._arm_expiry()
        self._feeder.feed_soon()

    def _give_up(self, request: Request) -> Outputs:
        """A defect that shows when a request comes ends the request alone: routers would bring it
        to one scheduler after the other. Raises AssertionError if something is left of it."""
        logger.critical("a defect of the scheduler's own: a request ends by it", exc_info=True)
        ids = range(request.sequence_id, request.sequence_id + request.num_samples)
        for sequence_id in ids:
            self._core.abort(request.router, sequence_id, self._clock())
        self._core.check_integrity()
        message = "the server could not take the request"
        return Outputs(finished=tuple(failed(request, sequence_id, message) for sequence_id in ids))

    def abort(self, router: Router, sequence_ids: Sequence[int]) -> None:
        """The clients of these sequences have left."""
        for sequence_id in sequence_ids:
            self._tell(self._core.abort(router.number, sequence_id, self._clock()))
        self._feeder.feed_soon()

    def finish(self, router: Router, sequence_id: int, num_tokens: int) -> None:
        """The router has found a stop string after this many output tokens."""
        self._tell(self._core.finish(router.number, sequence_id, num_tokens, self._clock()))
        self._feeder.feed_soon()

    def _arm_expiry(self) -> None:
        """Wakes when the next deadline comes; one timer for all."""
        when = self._core.next_deadline()
        if when is None or when >= self._expires_at:
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = when
        wait_s = max(0.0, when - self._clock())
        self._expiry = self.guard.call_later(wait_s, self._expire)

    def _expire(self) -> None:
        self._expiry, self._expires_at = None, inf
        self._tell(self._core.expire(self._clock()))
        self._arm_expiry()
        self._feeder.feed_soon()

    # ---- workers ----

    def join(self, hello: WorkerHello, stream: Stream) -> Rank:
        """A rank has said hello; with the last one, its replica enters an epoch. Raises Misfit."""
        self._check_serves(hello)
        self._attachments.check_fits(hello)
        older = self._attachments.get(hello.replica_id)
        if older is not None:
            why = f"rank {hello.rank} has dialled again, as worker {hello.worker_id!r}"
            self._detach(older, grpc.StatusCode.ABORTED, why, blame=False)
        rank = Rank(hello, stream)
        ranks = self._attachments.gather(rank)
        if ranks is not None:
            self._attach(ranks)
        return rank

    def part(self, rank: Rank) -> None:
        """A rank's stream has ended: its replica is lost."""
        if rank.attachment is not None:
            who = f"rank {rank.hello.rank} ({rank.hello.worker_id!r})"
            why = f"{who} has left" if rank.takes_leave else f"lost the stream of {who}"
            blame = not rank.takes_leave
            self._detach(rank.attachment, grpc.StatusCode.ABORTED, why, blame=blame)
        self._attachments.forget(rank)

    def heard(self, rank: Rank) -> None:
        """A sign of life."""
        if rank.attachment is not None:
            rank.attachment.last_seen = self._clock()

    def result(self, rank: Rank, result: Result) -> None:
        """What a step produced. Void ones are counted and ignored. Raises Malformed."""
        attachment = rank.attachment
        if attachment is None or result.epoch != attachment.epoch or rank.hello.rank != 0:
            self.metrics.num_stale_results += 1
            return
        expected = attachment.in_flight[0].step_id if attachment.in_flight else None
        step_id = result.step.step_id
        if step_id != expected:
            if step_id <= attachment.num_steps:
                self.metrics.num_stale_results += 1
                return
            raise Malformed(f"result of step {step_id}; the next one is of step {expected}")
        now = self._clock()
        try:
            outputs = self._core.apply(attachment.replica_id, result.step, now)
        except WrongResult as error:
            raise Malformed(str(error)) from error
        num_tokens, seconds = attachment.complete_oldest(sum(result.step.drafted.tolist()), now)
        self._tell(outputs, result.logprobs, result.vectors, result.scores)
        self._feeder.feed(attachment)
        self.metrics.iteration_tokens.observe(num_tokens)
        self.metrics.worker_wait_s.observe(result.timing.wait_s)
        self.metrics.step_s.observe(seconds)

    def _check_serves(self, hello: WorkerHello) -> None:
        """A cell serves one model for as long as anything depends on it. Raises Misfit."""
        if self.model is not None and (len(self._attachments) or self.num_sequences):
            check_model(hello.model, self.model)

    def _attach(self, ranks: tuple[Rank, ...]) -> None:
        now = self._clock()
        self.model = ranks[0].hello.model
        self.model_known.set()
        attachment = self._attachments.attach(ranks, now)
        self._feeder.watch(attachment, self._fence, self._step_timeout_s)
        inventory = attachment.inventory
        keeps = self._core.attach(attachment.replica_id, attachment.capacity, inventory)
        attachment.welcome(self._core.hash_seed(attachment.replica_id), keeps_names=keeps)
        if inventory is not None and keeps:
            logger.info(
                "replica %r still holds %d blocks of prefixes",
                *(attachment.replica_id, len(inventory.name)),
            )
        self._push_status()
        self._feeder.feed_soon()
        if self._drained.is_set():
            self._dismiss(attachment)

    def _detach(
        self, attachment: Attachment, code: grpc.StatusCode, why: str, *, blame: bool
    ) -> None:
        """An epoch is void. Blame: the sequences in flight may be why."""
        self._feeder.forget(attachment)
        self._attachments.detach(attachment, code, why)
        self._tell(self._withdraw(attachment.replica_id, blame=blame))
        self._push_status()
        self._feeder.feed_soon()

    def _withdraw(self, replica_id: str, *, blame: bool) -> Outputs:
        """The core loses a replica; what becomes of the sequences that ran on it is told once."""
        num_before = self._core.state().num_replays
        outputs = self._core.detach(replica_id, self._clock(), blame=blame)
        num_running = self._core.state().num_replays - num_before
        num_given_up = len(outputs.finished)
        num_suspects = self._core.state().num_suspects
        if num_running or num_given_up:
            logger.warning(
                "replica %r had %d running sequence(s)%s%s; what has not ended goes on elsewhere",
                *(replica_id, num_running),
                f"; {num_given_up} ended: workers were lost with them alone"
                if num_given_up
                else "",
                f"; {num_suspects} suspected" if num_suspects else "",
            )
        return outputs

    def _fence(self, attachment: Attachment) -> None:
        """A step is overdue: whatever its worker still does counts no more."""
        self.metrics.num_fenced_replicas += 1
        oldest = attachment.in_flight[0]
        why = f"step {oldest.step_id} ({oldest.num_tokens} tokens) missed its deadline"
        self._detach(attachment, grpc.StatusCode.DEADLINE_EXCEEDED, why, blame=True)

    def _tell(
        self,
        outputs: Outputs,
        logprobs: LogprobTable | None = None,
        vectors: VectorTable | None = None,
        scores: ScoreTable | None = None,
    ) -> None:
        """The end of every event: its news goes out."""
        self._last_event_at = self._clock()
        self._routers.deliver(outputs, logprobs, vectors, scores)
        if outputs.finished:
            self.metrics.finished(outputs.finished)
        if self.draining:
            self._note_drained()

    # ---- the cell as a whole ----

    def view(self) -> CellView:
        """The shell's part of the state."""
        now = self._clock()
        return CellView(
            model=self.model,
            replicas=tuple(self._view_of(attachment, now) for attachment in self._attachments),
            num_routers=len(self._routers),
            draining=self.draining,
            incarnation=self.incarnation,
            uptime_s=now - self._started_at,
        )

    def _view_of(self, attachment: Attachment, now: float) -> ReplicaView:
        since = attachment.oldest_since
        return ReplicaView(
            replica_id=attachment.replica_id,
            epoch=attachment.epoch,
            device=attachment.device,
            pids=tuple(rank.hello.pid for rank in attachment.ranks),
            num_steps=attachment.num_steps,
            last_seen_s=now - attachment.last_seen,
            step_age_s=None if since is None else now - since,
            step_patience_s=attachment.patience_s(self._step_timeout_s),
        )

    def state(self) -> CoreState:
        """The core's part of the state."""
        return self._core.state()

    def tick(self) -> None:
        """Once a second: routers hear how the cell is, and a quiet core is checked."""
        self._push_status()
        self._feeder.feed_soon()
        quiet = self._clock() - self._last_event_at >= _QUIET_S
        if quiet and self._last_event_at > self._checked_at and not self._num_in_flight():
            self._checked_at = self._clock()
            self.check_integrity()

    def start_draining(self) -> None:
        """The cell is given up: from now on requests are refused, what was accepted goes on, and
        after the last of it every worker is told to leave for good."""
        if not self.draining:
            self.draining = True
            logger.info("an operator drains the cell: %d sequence(s) left", self.num_sequences)
            self._push_status()
            self._note_drained()

    @property
    def num_sequences(self) -> int:
        """Accepted, and not ended."""
        state = self._core.state()
        return state.num_running + state.num_waiting

    async def wait_drained(self) -> None:
        """Returns when nothing accepted is left, and the workers were told to leave."""
        await self._drained.wait()

    def _note_drained(self) -> None:
        """The event that ended the last sequence is to be over first."""
        if not self.num_sequences and not self._drained.is_set():
            self.guard.call_soon(self._end_drain)

    def _end_drain(self) -> None:
        if self.num_sequences or self._drained.is_set():
            return
        logger.info("the cell is drained: its workers are told to leave")
        for attachment in self._attachments:
            self._dismiss(attachment)
        self._drained.set()

    @staticmethod
    def _dismiss(attachment: Attachment) -> None:
        for rank in attachment.ranks:
            rank.stream.send(workers.DRAIN)

    async def wait_left(self, word_s: float) -> None:
        """Returns when every router that ends itself has; each has so long to say that it does."""
        await self._routers.wait_left(word_s)

    def reset_prefixes(self) -> int:
        """Every cached prefix is forgotten; returns how many blocks held one."""
        num_blocks = self._core.reset_prefixes()
        logger.info("an operator had the prefix cache forgotten: %d blocks", num_blocks)
        self._push_status()
        return num_blocks

    def end_streams(self) -> None:
        """This scheduler goes, the cell stays: routers and workers will dial the next one.

        Routers first, once they have all their news: what the loss of the workers does to
        unfinished sequences is not for them, they submit those again.
        """
        why = "the scheduler is shutting down"
        self._routers.dismiss(why)
        for attachment in self._attachments:
            self._detach(attachment, grpc.StatusCode.UNAVAILABLE, why, blame=False)

    def _push_status(self) -> None:
        if len(self._routers):
            self._routers.broadcast(frames.encode_status(self.view(), self._core.state()))

    def _num_in_flight(self) -> int:
        return sum(len(attachment.in_flight) for attachment in self._attachments)

    def check_integrity(self) -> None:
        """A broken invariant is a defect to be found, not a reason to end what still works."""
        try:
            self._core.check_integrity()
        except AssertionError:
            self.metrics.num_integrity_failures += 1
            logger.critical("the core's books do not balance", exc_info=True)
