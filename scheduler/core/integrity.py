"""What must hold between any two events. Assertions only: nothing here changes anything."""

from collections import Counter

from scheduler.core.fairness import Accounts
from scheduler.core.quarantine import Quarantine
from scheduler.core.registry import Registry
from scheduler.core.replica import Replica
from scheduler.core.replicas import Replicas
from scheduler.core.sequence import Sequence, Status


def check_core(
    sequences: Registry, replicas: Replicas, quarantine: Quarantine, accounts: Accounts
) -> None:
    """Raises AssertionError unless everything the core holds is consistent."""
    for replica in replicas:
        check_replica(replica)
    for part in (sequences, replicas, quarantine, accounts):
        part.check_integrity()
    open_accounts = {id(sequence.account) for sequence in sequences}
    assert len(open_accounts) == accounts.num_active, "an account is open for nobody"
    held = [s for queue in (*replicas.queues(), quarantine.waiting) for s in queue]
    held += [s for replica in replicas for s in replica.slots.running()]
    assert len(held) == len(sequences), "a sequence is held twice or by nobody"
    assert set(map(id, held)) == set(map(id, sequences)), "a held sequence is unknown"


def check_replica(replica: Replica) -> None:
    """Raises AssertionError unless blocks, slots, queue and calendar of a replica agree."""
    running = replica.slots.running()
    mentions = Counter(block for sequence in running for block in sequence.blocks)
    mentions.update(replica.in_flight.limbo.mentions())
    replica.pool.check_integrity(dict(mentions))
    replica.slots.check_integrity([remains.slot for remains in replica.in_flight.limbo])
    replica.queue.check_integrity()
    replica.calendar.check_integrity()
    replica.speculation.check_integrity(replica.calendar)
    assert all(s.status is Status.WAITING for s in replica.queue), "a waiting sequence runs"
    assert len(replica.in_flight) or not list(replica.in_flight.limbo), (
        "limbo waits for a result that never comes"
    )
    for sequence in running:
        _check_running(replica, sequence)


def _check_running(replica: Replica, sequence: Sequence) -> None:
    assert sequence.status is Status.RUNNING, "a slot's tenant does not run"
    assert sequence.replica == replica.name, "a tenant belongs elsewhere"
    computed = replica.num_computed(sequence)
    confirmed = int(replica.slots.num_tokens[sequence.slot])
    reserved = max(computed, replica.speculation.num_reserved(sequence.slot))
    assert len(sequence.blocks) == replica.num_blocks_for(reserved), "a block table is off"
    limit = sequence.num_positions
    assert computed <= limit, "computed beyond the limit"
    assert sequence.num_known_tokens <= confirmed <= limit, "tokens are off"
    prefills = sequence.slot in replica.prefilling
    decodes = sequence.slot in replica.calendar
    assert not (prefills and decodes), "a sequence both prefills and decodes"
    if prefills:
        assert computed < sequence.num_known_tokens, "a prefill is complete"
    elif not decodes:
        assert len(replica.in_flight), "a sequence waits for a result that never comes"
    assert prefills or computed >= confirmed - 1, "a token came from a position never computed"
