"""Who executes: ranks gather until their replica is whole, and each whole replica is one epoch.

    rank dials ──▶ gathering ──all ranks here──▶ attached (epoch n) ──▶ gone
                       ▲                             │
                       └──────── dials again ────────┘  any rank lost or dialling again, a step
                                                        overdue: the epoch is void, all ranks go

Epochs grow over restarts of the scheduler, so whatever carries an older one is known to be void.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import grpc
import numpy as np

from scheduler.core.decisions import Plan
from scheduler.core.events import Capacity, Inventory
from scheduler.messages import ModelCard, WorkerHello
from scheduler.pacing import Pace
from scheduler.stream import Stream
from scheduler.wire import workers

logger = logging.getLogger(__name__)


class Misfit(Exception):
    """A worker cannot be part of this cell; its stream ends with FAILED_PRECONDITION."""


@dataclass(eq=False, slots=True)
class Rank:
    """One worker's stream."""

    hello: WorkerHello
    stream: Stream
    attachment: "Attachment | None" = None
    """Set while its replica is whole."""
    takes_leave: bool = False
    """It has said farewell: the end of its stream is nobody's fault."""

    @property
    def num_slots(self) -> int:
        """Slots that its results may name."""
        mine = self.hello.capacity if self.attachment is None else self.attachment.capacity
        return mine.max_num_seqs


@dataclass(frozen=True, slots=True)
class SentPlan:
    """A plan whose result is awaited."""

    step_id: int
    num_tokens: int
    max_draft_tokens: int
    """Of those, what may be drafted; the worker may find fewer."""
    sent_at: float
    prepares: bool
    """It makes grammars ready, whatever that takes."""


@dataclass(eq=False, slots=True)
class Attachment:
    """A replica during one epoch."""

    replica_id: str
    epoch: int
    ranks: tuple[Rank, ...]
    capacity: Capacity
    last_seen: float
    last_result_at: float
    """When it attached, before the first."""
    pace: Pace = field(default_factory=Pace)
    in_flight: deque[SentPlan] = field(default_factory=deque)
    holds_back: asyncio.TimerHandle | None = None
    """Until this fires no plan goes ahead of its results: what belongs into it may be under way."""
    num_steps: int = 0

    @property
    def inventory(self) -> Inventory | None:
        """What the blocks of all ranks hold; None unless they say the same."""
        first, *others = (rank.hello.inventory for rank in self.ranks)
        if first is None or any(other is None or not _agree(first, other) for other in others):
            return None
        kept = first.block <= self.capacity.num_blocks
        return first if bool(kept.all()) else None

    @property
    def model(self) -> ModelCard:
        """What it serves."""
        return self.ranks[0].hello.model

    @property
    def device(self) -> str:
        """For people: what rank 0 runs on."""
        return self.ranks[0].hello.device

    @property
    def oldest_since(self) -> float | None:
        """When the plan now executing could start: it was sent, and the one before it was done."""
        if not self.in_flight:
            return None
        return max(self.in_flight[0].sent_at, self.last_result_at)

    @property
    def ahead_at(self) -> float:
        """From when on plans may go ahead of the one now executing, which there must be."""
        since = self.oldest_since
        assert since is not None
        oldest = self.in_flight[0]
        return since + self.pace.hold_s(oldest.num_tokens - oldest.max_draft_tokens)

    def stop_holding(self) -> None:
        """What plans were held back for is over."""
        if self.holds_back is not None:
            self.holds_back.cancel()
            self.holds_back = None

    def welcome(self, hash_seed: bytes, *, keeps_names: bool) -> None:
        """Opens the epoch at every rank."""
        message = workers.encode_welcome(self.epoch, hash_seed, keeps_names=keeps_names)
        for rank in self.ranks:
            rank.stream.send(message)

    def send(self, plan: Plan, message: bytes, now: float) -> None:
        """Writes a plan's bytes to every rank."""
        prepares = workers.brings_grammar(plan)
        sent = SentPlan(plan.step_id, plan.num_tokens, plan.max_draft_tokens, now, prepares)
        self.in_flight.append(sent)
        for rank in self.ranks:
            rank.stream.send(message)

    def complete_oldest(self, num_drafted: int, now: float) -> tuple[int, float]:
        """The result of the oldest plan is here, which has drafted so many tokens: how many it has
        computed, and the seconds it took."""
        since = self.oldest_since
        assert since is not None
        plan = self.in_flight.popleft()
        seconds = now - since
        num_tokens = plan.num_tokens - plan.max_draft_tokens + num_drafted
        self.pace.observe(seconds, num_tokens)
        self.last_result_at = self.last_seen = now
        self.num_steps += 1
        return num_tokens, seconds

    def patience_s(self, floor_s: float) -> float:
        """How long the oldest plan in flight may take; 0 when there is none."""
        if not self.in_flight:
            return 0.0
        oldest = self.in_flight[0]
        return self.pace.patience_s(oldest.num_tokens, floor_s=floor_s, prepares=oldest.prepares)

    def overdue_at(self, floor_s: float) -> tuple[int, float] | None:
        """Step id and deadline of the oldest plan in flight."""
        since = self.oldest_since
        if since is None:
            return None
        return self.in_flight[0].step_id, since + self.patience_s(floor_s)

    def close(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the streams of all ranks."""
        for rank in self.ranks:
            rank.attachment = None
            rank.stream.close(code, details)


class Attachments:
    """Ranks that gather, and replicas that are attached."""

    def __init__(self) -> None:
        self._gathering: dict[str, dict[int, Rank]] = {}
        self._attached: dict[str, Attachment] = {}
        self._newest_epoch = 0

    def __iter__(self) -> Iterator[Attachment]:
        return iter(tuple(self._attached.values()))

    def __len__(self) -> int:
        return len(self._attached)

    def get(self, replica_id: str) -> Attachment | None:
        """The attached replica of this name."""
        return self._attached.get(replica_id)

    def check_fits(self, hello: WorkerHello) -> None:
        """Raises Misfit unless the place it claims is vacant or its own, and its siblings agree."""
        attached = self._attached.get(hello.replica_id)
        gathering = self._gathering.get(hello.replica_id, {})
        for other in gathering.values() if attached is None else attached.ranks:
            if other.hello.rank == hello.rank:
                _check_same_worker(hello, other.hello)
            else:
                _check_siblings(hello, other.hello)

    def gather(self, rank: Rank) -> tuple[Rank, ...] | None:
        """A rank that fits has said hello; returns all ranks of its replica once they are here.

        An older stream of the same rank ends.
        """
        hello = rank.hello
        gathered = self._gathering.setdefault(hello.replica_id, {})
        older = gathered.pop(hello.rank, None)
        if older is not None:
            older.stream.close(grpc.StatusCode.ABORTED, "this rank has dialled again")
        gathered[hello.rank] = rank
        if len(gathered) < hello.world_size:
            return None
        del self._gathering[hello.replica_id]
        return tuple(gathered[index] for index in range(hello.world_size))

    def attach(self, ranks: tuple[Rank, ...], now: float) -> Attachment:
        """A whole replica enters a new epoch; its ranks are to be welcomed."""
        first = ranks[0].hello
        self._newest_epoch = max(self._newest_epoch + 1, time.time_ns())
        attachment = Attachment(
            replica_id=first.replica_id,
            epoch=self._newest_epoch,
            ranks=ranks,
            capacity=_shared_capacity(ranks),
            last_seen=now,
            last_result_at=now,
        )
        for rank in ranks:
            rank.attachment = attachment
        self._attached[first.replica_id] = attachment
        logger.info(
            "replica %r attached: %d rank(s) on %s, %d blocks of %d tokens, epoch %016x",
            first.replica_id,
            len(ranks),
            attachment.device,
            attachment.capacity.num_blocks,
            attachment.capacity.block_size,
            attachment.epoch,
        )
        return attachment

    def detach(self, attachment: Attachment, code: grpc.StatusCode, details: str) -> None:
        """Its epoch is void: every rank has to dial again."""
        del self._attached[attachment.replica_id]
        attachment.close(code, details)
        # It goes as it should, or this scheduler does.
        has_left = any(rank.takes_leave for rank in attachment.ranks)
        is_expected = has_left or code is grpc.StatusCode.UNAVAILABLE
        level = logging.INFO if is_expected else logging.WARNING
        logger.log(level, "replica %r detached: %s", attachment.replica_id, details)

    def forget(self, rank: Rank) -> None:
        """The stream of a rank that may still be gathering has ended."""
        gathered = self._gathering.get(rank.hello.replica_id, {})
        if gathered.get(rank.hello.rank) is rank:
            del gathered[rank.hello.rank]
            if not gathered:
                del self._gathering[rank.hello.replica_id]


def _agree(one: Inventory, other: Inventory) -> bool:
    return (
        one.hash_seed == other.hash_seed
        and one.name == other.name
        and bool(np.array_equal(one.block, other.block))
    )


def _check_same_worker(hello: WorkerHello, holder: WorkerHello) -> None:
    if hello.worker_id != holder.worker_id:
        raise Misfit(
            f"rank {hello.rank} of replica {hello.replica_id!r} is worker {holder.worker_id!r}, "
            f"which is connected; worker {hello.worker_id!r} cannot take its place"
        )


def _check_siblings(hello: WorkerHello, other: WorkerHello) -> None:
    for name, mine, theirs in (
        ("world_size", hello.world_size, other.world_size),
        ("block_size", hello.capacity.block_size, other.capacity.block_size),
    ):
        if mine != theirs:
            raise Misfit(
                f"{name} is {mine} on rank {hello.rank} and {theirs} on rank {other.rank}; "
                f"the ranks of replica {hello.replica_id!r} must agree"
            )
    check_model(hello.model, other.model)


def check_model(offered: ModelCard, served: ModelCard) -> None:
    """Raises Misfit unless sequences may move between the two."""
    if not offered.serves_like(served):
        raise Misfit(f"model is {_describe(offered)}; this cell serves {_describe(served)}")


def _describe(model: ModelCard) -> str:
    return (
        f"{model.name!r} (revision {model.revision!r}, max_model_len {model.max_model_len}, "
        f"vocab_size {model.vocab_size})"
    )


def _shared_capacity(ranks: tuple[Rank, ...]) -> Capacity:
    """What all ranks have: the least of each."""
    capacities = [rank.hello.capacity for rank in ranks]
    return replace(
        capacities[0],
        num_blocks=min(capacity.num_blocks for capacity in capacities),
        max_num_seqs=min(capacity.max_num_seqs for capacity in capacities),
        max_num_batched_tokens=min(capacity.max_num_batched_tokens for capacity in capacities),
        max_draft_tokens=min(capacity.max_draft_tokens for capacity in capacities),
        graph_buckets=tuple(
            sorted(set.intersection(*(set(capacity.graph_buckets) for capacity in capacities)))
        ),
    )
