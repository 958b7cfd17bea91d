"""Who gives up blocks when there are none left.

A sequence may take blocks only from sequences that stand after it: in the policy's order as of
their first admission, which never changes. If none of them has any to give, it yields itself. So
the first always goes on, and since it ends, everyone does.

Among those after it, the victim is the one with the least work to repeat per block gained. Work is
the tokens computed in blocks that nobody shares (shared ones stay where they are and are found
again); blocks beyond the shortage gain nothing, so a long sequence is not thrown out for one block.
On ties the newest goes.

Blocks of a victim pass through limbo when plans are in flight. They are counted as coming, so that
waiting for them does not cost a second victim.
"""

from bisect import bisect_left
from math import inf

from scheduler.core.replica import Replica
from scheduler.core.sequence import Sequence


def _cost_per_block(replica: Replica, sequence: Sequence, shortage: int) -> float:
    """Tokens to repeat per block gained; infinite if nothing would be."""
    # Sharing is by prefix, so shared blocks are the head of the table.
    shared = bisect_left(
        sequence.blocks, True, key=lambda block: replica.pool.references(block) == 1
    )
    gained = min(len(sequence.blocks) - shared, shortage)
    if gained == 0:
        return inf
    return (replica.num_computed(sequence) - shared * replica.block_size) / gained


def _cheapest_after(replica: Replica, needy: Sequence, shortage: int) -> Sequence | None:
    """The victim among those after the one in need; None if none of them would free a block."""
    candidates = [s for s in replica.slots.running() if s.standing > needy.standing]
    newest_first = sorted(candidates, key=lambda sequence: sequence.standing, reverse=True)
    costs = [_cost_per_block(replica, sequence, shortage) for sequence in newest_first]
    if not costs or min(costs) == inf:
        return None
    return newest_first[costs.index(min(costs))]


def make_room_to_decode(replica: Replica, crossers: list[Sequence]) -> list[Sequence]:
    """Preempt until every crosser left can have one block, now or when limbo empties.

    `crossers` are decoding sequences that need a block each; returns those that still run.
    """
    crossers = sorted(crossers, key=lambda sequence: sequence.standing)
    while True:
        supply = replica.pool.num_available + replica.num_coming_blocks()
        if supply >= len(crossers):
            return crossers
        needy = crossers[supply]
        victim = _cheapest_after(replica, needy, len(crossers) - supply) or needy
        replica.preempt(victim)
        crossers = [sequence for sequence in crossers if sequence is not victim]


def make_room_to_prefill(replica: Replica, sequence: Sequence, num_blocks: int) -> list[int]:
    """Preempt sequences after this one until it can have the blocks, now or when limbo empties.

    Returns the slots that were vacated. It may not suffice: then those before it hold the rest.
    """
    vacated: list[int] = []
    while True:
        supply = replica.pool.num_available + replica.num_coming_blocks()
        if supply >= num_blocks:
            return vacated
        victim = _cheapest_after(replica, sequence, num_blocks - supply)
        if victim is None:
            return vacated
        vacated.append(victim.slot)
        replica.preempt(victim)
