"""Who gives up blocks when there are none left.

A sequence may take blocks only from sequences that stand after it: in the policy's order as of
their first admission, which never changes. If none of them has any to give, it yields itself. So
the first always goes on, and since it ends, everyone does.

Among those after it, the victim is the one with the least work to repeat per block gained. Work is
the tokens computed in blocks that nobody shares (shared ones stay where they are and are found
again); blocks beyond the shortage gain nothing, so a long sequence is not thrown out for one block.
On ties the newest goes.

Slots and blocks are also shared evenly between tenants (fairness.py): one that waits and has less
than its even share takes from the one that has most, if that is more than an even share; never from
one that was served less, and never what stands first. After that nobody is owed anything, so it
does not go back and forth.

Blocks of a victim pass through limbo when plans are in flight. They are counted as coming, so that
waiting for them does not cost a second victim.
"""

from bisect import bisect_left
from math import inf

from scheduler.core.fairness import Account
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


def make_room_for_tenant(replica: Replica, waiting: Sequence, num_blocks: int) -> None:
    """A sequence waits for a slot, or for blocks (`num_blocks` that it needs, else 0). If its
    tenant has less than an even share, preempt one sequence of the tenant that has most."""
    running = replica.slots.running()
    held: dict[Account, int] = dict.fromkeys(replica.queue.tenants(), 0)
    for sequence in running:
        amount = len(sequence.blocks) if num_blocks else 1
        held[sequence.account] = held.get(sequence.account, 0) + amount
    share = (replica.pool.num_blocks if num_blocks else replica.slots.num_slots) // len(held)
    rich = max(held, key=lambda account: held[account])
    if held[waiting.account] + (num_blocks or 1) > share or held[rich] <= share:
        return
    if rich.served <= waiting.account.served:
        return
    newest = max((s for s in running if s.account is rich), key=lambda s: s.standing)
    if newest is not min(running, key=lambda s: s.standing):
        replica.preempt(newest)
