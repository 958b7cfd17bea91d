"""Which replica a request goes to, and when another one takes it over.

A new request goes where (cached tokens - load) is greatest, both in tokens: the prefix index of
every replica is here, so the first is exact. Load is what must be computed before the request's
turn comes, and a term for each running sequence, which slows every step a little.

Estimates age. A replica with nothing queued therefore steals from the longest queue of one that
could not start its next sequence itself. Samples of one request stay together, since they share
their prompt's blocks.
"""

from collections.abc import Collection, Iterable

from scheduler.core.replica import Replica
from scheduler.core.sequence import Sequence

RUNNING_TOKENS = 16
"""Tokens of load that one running sequence stands for."""


def _load(replica: Replica, sequence: Sequence) -> int:
    uncomputed = sum(
        s.num_known_tokens - s.num_computed_tokens for s in replica.prefilling.values()
    )
    queued = replica.queue.num_tokens_before(sequence)
    return queued + uncomputed + RUNNING_TOKENS * replica.slots.num_running


def choose(
    replicas: Iterable[Replica], sequence: Sequence, avoid: Replica | None = None
) -> Replica | None:
    """The best replica that can hold the sequence; None if there is none. One that is reserved
    for suspects takes nobody; one to `avoid` is the last resort."""
    able = [r for r in replicas if r.can_hold(sequence.request) and not r.is_reserved]
    able = [replica for replica in able if replica is not avoid] or able
    if len(able) < 2:
        return able[0] if able else None

    def score(replica: Replica) -> int:
        cached = len(replica.prefixes.cached_blocks(sequence)) * replica.block_size
        return cached - _load(replica, sequence)

    return max(able, key=score)


def steal(thief: Replica, replicas: Collection[Replica]) -> None:
    """Fill an empty queue, as far as the thief could admit at once."""
    if len(thief.queue) > 0 or len(replicas) < 2 or thief.is_reserved:
        return
    num_slots = thief.slots.num_free
    num_tokens = thief.max_step_tokens - len(thief.calendar)
    while len(thief.queue) < num_slots and thief.queue.num_tokens < num_tokens:
        victims = [r for r in replicas if r.blocked and r is not thief and not r.is_reserved]
        victim = max(victims, key=lambda other: len(other.queue), default=None)
        if victim is None or len(victim.queue) == 0:
            return
        family = _movable_family(victim, thief)
        if not family or len(thief.queue) + len(family) > num_slots:
            return
        for sequence in family:
            victim.queue.remove(sequence)
            thief.enqueue(sequence)


def _movable_family(victim: Replica, thief: Replica) -> list[Sequence]:
    """The next sequence and its waiting siblings; empty if it must stay."""
    head = victim.queue.first()
    if not thief.can_hold(head.request):
        return []
    if thief.num_blocks_for(head.num_known_tokens) > thief.pool.num_available:
        return []
    if head.request.num_samples == 1:
        return [head]
    if any(sequence.request is head.request for sequence in victim.slots.running()):
        return []
    return victim.queue.family(head)
