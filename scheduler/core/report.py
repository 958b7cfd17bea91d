"""The core's totals and each replica's, read off their parts."""

from collections.abc import Iterable
from dataclasses import asdict

from scheduler.core.quarantine import Quarantine
from scheduler.core.replica import Replica
from scheduler.core.replicas import Replicas
from scheduler.core.state import CoreState, Counters, Ends, ReplicaState


def core_state(
    replicas: Replicas, quarantine: Quarantine, ends: Ends, detached: Counters
) -> CoreState:
    """Everything, where `detached` are the totals of replicas that are gone."""
    states = tuple(_replica_state(replica) for replica in replicas)
    return CoreState(
        replicas=states,
        num_blocks_total=sum(state.num_blocks_total for state in states),
        num_blocks_free=sum(state.num_blocks_free for state in states),
        num_blocks_cached=sum(state.num_blocks_cached for state in states),
        num_blocks_used=sum(state.num_blocks_used for state in states),
        num_blocks_limbo=sum(state.num_blocks_limbo for state in states),
        num_running=sum(state.num_running for state in states),
        num_waiting=replicas.num_waiting + len(quarantine.waiting),
        num_suspects=quarantine.num_suspects,
        num_convicted=ends.num_convicted,
        num_expired=ends.num_expired,
        num_wasted_token_slots=sum(state.num_wasted_token_slots for state in states),
        **asdict(_sum([detached, *(replica.counters for replica in replicas)])),
    )


def _sum(counters: Iterable[Counters]) -> Counters:
    totals = Counters()
    for each in counters:
        totals.add(each)
    return totals


def _replica_state(replica: Replica) -> ReplicaState:
    running = replica.slots.running()
    return ReplicaState(
        replica=replica.name,
        block_size=replica.block_size,
        num_blocks_total=replica.pool.num_blocks,
        num_blocks_free=replica.pool.num_free,
        num_blocks_cached=replica.pool.num_cached,
        num_blocks_used=replica.pool.num_used,
        num_blocks_limbo=replica.num_coming_blocks(),
        num_running=len(running),
        num_waiting=len(replica.queue),
        num_in_flight=len(replica.in_flight),
        num_wasted_token_slots=sum(
            len(s.blocks) * replica.block_size - replica.num_computed(s)
            for s in running
            if replica.keeps_kv
        ),
        **asdict(replica.counters),
    )
