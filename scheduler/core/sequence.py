"""The scheduler's record of one generation.

A sequence is WAITING in one queue, RUNNING in one slot of one replica, or FINISHED. It has no
prefill or decode mode: it runs until the positions computed have caught up with the tokens known,
and each sampled token is one more to catch up with. One that wants its prompt's vector samples
nothing: it ends when its prompt is computed.

    tokens known   request.token_ids | output
    while running  the newest tokens, less than a block of them, are in the slot table's tail
"""

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np

from scheduler.core.blame import Blame
from scheduler.core.block_hash import HashChain
from scheduler.core.decisions import Finished
from scheduler.core.events import FinishReason, Int32Column, Request, WrongResult
from scheduler.core.fairness import Account
from scheduler.core.policy import Order

if TYPE_CHECKING:
    from scheduler.core.waiting import WaitingQueue


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


_MOVES: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),
    Status.RUNNING: frozenset({Status.WAITING, Status.FINISHED}),
    Status.FINISHED: frozenset(),
}


class IllegalMove(Exception):
    """A status change that the table does not allow; nothing was changed."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One sample of one request."""

    request: Request
    sequence_id: int
    seed: int
    order: Order
    accepted_at: float
    private: int | None
    """Set: prefixes are shared only within the request of this number."""
    account: Account
    """Its tenant's."""
    status: Status = Status.WAITING
    score_from: int | None = None
    """The first prompt token that is still to be scored; None: there is none."""
    output: "array[int]" = field(default_factory=lambda: array("i"))
    """Confirmed output tokens beyond those of the request."""
    chain: HashChain | None = None
    replica: str | None = None
    """Where it waits or runs; None while it waits for no replica in particular."""
    queue: "WaitingQueue | None" = None
    """Which it waits in; None while it runs."""

    slot: int = 0
    """Meaningful only while running."""
    blocks: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    """Positions planned so far; the decode calendar takes over once it has caught up."""
    last_step: int = 0
    """The newest step that computed known tokens, or the last it decoded in."""

    num_queued_tokens: int = 0
    """Tokens to compute at its next admission, as estimated when it was queued."""
    num_paid_tokens: int = 0
    """Positions charged for: computing one again is on the house."""
    standing: Order = (0.0, 0)
    """Among running sequences, who goes before whom: the policy's order as of its first admission,
    so that whoever was let in later, with right, does not stand before those already there."""
    admitted_at: float | None = None
    first_token_at: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    was_replayed: bool = False
    """Its output was not finite once; the second time it ends."""
    blame: Blame = field(default_factory=Blame)

    @property
    def num_known_tokens(self) -> int:
        """Tokens in this record; while running the slot table may have a few more."""
        return len(self.request.token_ids) + len(self.output)

    @property
    def num_output_tokens(self) -> int:
        return self.num_known_tokens - self.request.num_prompt_tokens

    @property
    def max_total_tokens(self) -> int:
        return self.request.max_total_tokens

    @property
    def num_positions(self) -> int:
        return self.request.num_positions

    @property
    def num_cacheable_tokens(self) -> int:
        """Tokens that need not be computed if their KV exists: all before the first position whose
        logits are wanted, be it to sample or to score the token after it."""
        if self.request.needs_every_position:
            return 0
        return (self.num_known_tokens if self.score_from is None else self.score_from) - 1

    def note_scores(self, start: int, end: int) -> None:
        """The prompt's tokens start to end - 1 have been scored. Raises WrongResult unless they
        are those that come next."""
        if start != self.score_from or end > self.request.num_prompt_tokens:
            raise WrongResult(f"prompt tokens {start} to {end - 1} were scored out of turn")
        self.score_from = end if end < self.request.num_prompt_tokens else None

    def tokens(self) -> Int32Column:
        """A new column of all tokens in this record, prompt first."""
        return np.concatenate((self.request.token_ids, np.array(self.output, np.int32)))

    def move(self, status: Status) -> None:
        """The only place where a status changes. Raises IllegalMove."""
        if status not in _MOVES[self.status]:
            raise IllegalMove(f"sequence {self.sequence_id}: {self.status.name} to {status.name}")
        self.status = status

    def finished(
        self,
        reason: FinishReason,
        now: float,
        *,
        max_output_tokens: int | None = None,
        message: str = "",
        vector_row: int | None = None,
    ) -> Finished:
        """Its end, as told to the router; the slot must have been vacated before."""
        admitted = self.admitted_at
        first = self.first_token_at
        count = self.num_output_tokens
        if max_output_tokens is not None:
            count = min(count, max_output_tokens)
        return Finished(
            router=self.request.router,
            sequence_id=self.sequence_id,
            reason=reason,
            num_prompt_tokens=self.request.num_prompt_tokens,
            num_output_tokens=count,
            num_cached_tokens=self.num_cached_tokens,
            num_preemptions=self.num_preemptions,
            queue_s=(now if admitted is None else admitted) - self.accepted_at,
            prefill_s=0.0 if admitted is None else (now if first is None else first) - admitted,
            decode_s=0.0 if first is None else now - first,
            message=message,
            probe=self.request.probe,
            vector_row=vector_row,
        )
