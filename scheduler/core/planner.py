"""What the next step of a replica computes, under one budget.

    1. the decode set   one token each, never paused; who has no block left preempts (preemption.py)
    2. prefills         running sequences with known tokens to compute, in policy order
    3. admissions       from the queue, in policy order, while tokens, slots and blocks last
    4. drafts           what decoding slots may suppose, while that costs nothing (speculation.py)

The budget is spent in that order, so a long prompt never delays a sequence that is already
streaming. Prompts are cut into chunks by whatever is left of it.
"""

import numpy as np

from scheduler.core.budget import StepBudget
from scheduler.core.decisions import Admission, Plan
from scheduler.core.events import Int32Column
from scheduler.core.fairness import Account
from scheduler.core.preemption import (
    make_room_for_tenant,
    make_room_to_decode,
    make_room_to_prefill,
)
from scheduler.core.replica import Replica
from scheduler.core.sequence import Sequence, Status

_NONE = np.empty(0, np.int32)


def _column(values: list[int]) -> Int32Column:
    return np.array(values, np.int32) if values else _NONE


class _Draft:
    """The columns of a plan in the making."""

    def __init__(self) -> None:
        self.admit: list[Admission] = []
        self.append_slot: list[int] = []
        self.append_index: list[int] = []
        self.append_block: list[int] = []
        self.chunk_slot: list[int] = []
        self.chunk_start: list[int] = []
        self.chunk_length: list[int] = []
        self.draft_slot: list[int] = []
        self.draft_length: list[int] = []
        self.max_draft_tokens = 0
        self.min_draft_tokens = 0

    def append(self, slot: int, index: int, blocks: list[int]) -> None:
        """Blocks that join a slot's table from `index` on."""
        self.append_slot += [slot] * len(blocks)
        self.append_index += range(index, index + len(blocks))
        self.append_block += blocks

    def chunk(self, slot: int, start: int, length: int) -> None:
        """Known tokens to compute."""
        self.chunk_slot.append(slot)
        self.chunk_start.append(start)
        self.chunk_length.append(length)

    def drop(self, slots: list[int]) -> None:
        """Forget the appends of slots that were vacated meanwhile."""
        kept = [i for i, slot in enumerate(self.append_slot) if slot not in slots]
        self.append_slot = [self.append_slot[i] for i in kept]
        self.append_index = [self.append_index[i] for i in kept]
        self.append_block = [self.append_block[i] for i in kept]


class Planner:
    """Makes one plan of one replica."""

    def __init__(self, replica: Replica, now: float) -> None:
        self._replica = replica
        self._now = now
        self._draft = _Draft()
        self._budget = StepBudget(0, 0, 0)

    def plan(self) -> Plan | None:
        """The next step, which counts as sent; None if there is nothing to do now."""
        replica = self._replica
        for slot in replica.calendar.departing(replica.next_step):
            replica.depart(slot)
        if len(replica.queue) and replica.accounts.num_active > 1:
            replica.charge_outputs()
            self._share_evenly()
        if not self._grow_decodes():
            replica.blocked = len(replica.queue) > 0
            return None
        self._budget.tokens = replica.max_step_tokens - len(replica.calendar)
        self._continue_prefills()
        self._admit_waiting()
        num_decodes = len(replica.calendar)
        if num_decodes == 0 and not self._draft.chunk_slot:
            return None
        num_tokens = num_decodes + sum(self._draft.chunk_length)
        self._let_draft(num_tokens)
        return self._send(num_decodes, num_tokens)

    def _share_evenly(self) -> None:
        """What comes first in the queue may have a claim to a slot or blocks of another tenant.
        It waits for what is in limbo before it takes any."""
        replica = self._replica
        if len(replica.in_flight.limbo):
            return
        sequence = replica.queue.first()
        if replica.slots.num_free == 0:
            make_room_for_tenant(replica, sequence, 0)
            return
        needed = replica.num_blocks_for(sequence.num_known_tokens)
        if needed > replica.pool.num_available - replica.watermark_blocks:
            make_room_for_tenant(replica, sequence, needed)

    def _grow_decodes(self) -> bool:
        """A block for each decoding slot that enters a new one; False: they are still in limbo."""
        replica = self._replica
        slots = replica.short_of_blocks()
        if not slots:
            return True
        if len(slots) > replica.pool.num_available:
            crossers = make_room_to_decode(replica, [replica.slots.tenant(slot) for slot in slots])
            if len(crossers) > replica.pool.num_available:
                return False
            slots = [sequence.slot for sequence in crossers]
        tables = [replica.slots.tenant(slot).blocks for slot in slots]
        gained = replica.pool.allocate(len(slots))
        self._draft.append_slot = slots
        self._draft.append_index = [len(table) for table in tables]
        self._draft.append_block = gained
        for table, block in zip(tables, gained, strict=True):
            table.append(block)
        return True

    def _continue_prefills(self) -> None:
        """In standing order, within what each tenant may have of this step."""
        replica = self._replica
        if not replica.prefilling:
            return
        ordered = sorted(replica.prefilling.values(), key=lambda s: s.standing)
        allowed = self._allowances(ordered)
        for sequence in ordered:
            if sequence.status is not Status.RUNNING:
                continue  # it was preempted for one before it
            length = min(
                sequence.num_known_tokens - sequence.num_computed_tokens,
                allowed[sequence.account],
            )
            end = sequence.num_computed_tokens + length
            needed = replica.num_blocks_for(end) - len(sequence.blocks)
            if needed > replica.pool.num_available:
                self._draft.drop(make_room_to_prefill(replica, sequence, needed))
                held = len(sequence.blocks) + min(needed, replica.pool.num_available)
                length = min(end, held * replica.block_size) - sequence.num_computed_tokens
            if length > 0:
                allowed[sequence.account] -= length
                self._compute(sequence, length)

    def _allowances(self, prefilling: list[Sequence]) -> dict[Account, int]:
        """Tokens of this step that each tenant may compute for sequences it has in the making: the
        one served least comes first, and what can be admitted next counts for its tenant (what
        cannot would keep tokens from those whose end it waits for). The first in standing gets one
        whatever it was served: it alone can always take blocks, so something moves."""
        replica, left = self._replica, self._budget.tokens
        if replica.accounts.num_active < 2:
            return {sequence.account: left for sequence in prefilling}
        wanted: dict[Account, int] = {}
        if len(replica.queue) and replica.slots.num_free:
            first = replica.queue.first()
            needed = self._blocks_to_admit(first, replica.prefixes.cached_blocks(first))
            if needed <= replica.pool.num_available:
                wanted[first.account] = first.num_queued_tokens
        for sequence in prefilling:
            uncomputed = sequence.num_known_tokens - sequence.num_computed_tokens
            wanted[sequence.account] = wanted.get(sequence.account, 0) + uncomputed
        allowed = dict.fromkeys(wanted, 0)
        if left > 0:
            allowed[prefilling[0].account] = 1
            left -= 1
        for account in sorted(wanted, key=lambda account: account.served):
            more = min(wanted[account] - allowed[account], left)
            allowed[account] += more
            left -= more
        return allowed

    def _compute(self, sequence: Sequence, length: int) -> None:
        start, held = sequence.num_computed_tokens, len(sequence.blocks)
        gained = self._replica.compute(sequence, length)
        self._budget.spend(tokens=length)
        self._draft.append(sequence.slot, held, gained)
        self._draft.chunk(sequence.slot, start, length)

    def _admit_waiting(self) -> None:
        """Admit in order until one does not fit: nobody is overtaken for being large."""
        replica, budget = self._replica, self._budget
        budget.slots = replica.slots.num_free
        budget.blocks = replica.pool.num_available
        fits = True
        while fits and budget.tokens > 0 and len(replica.queue) > 0:
            sequence = replica.queue.first()
            least = replica.least_chunk(sequence.num_known_tokens)
            cached = replica.prefixes.cached_blocks(sequence)
            needed = self._blocks_to_admit(sequence, cached)
            fits = budget.fits(tokens=least, slots=1, blocks=needed)
            if fits:
                budget.spend(slots=1, blocks=needed - self._spared_blocks())
                self._draft.admit.append(replica.admit(sequence, cached, self._now))
                known = sequence.num_known_tokens - sequence.num_computed_tokens
                self._compute(sequence, min(known, budget.tokens))
        another_step = replica.queue.num_tokens > replica.max_step_tokens
        replica.blocked = len(replica.queue) > 0 and (not fits or another_step)

    def _blocks_to_admit(self, sequence: Sequence, cached: list[int]) -> int:
        """Available blocks that there must be for the head of the queue to be admitted, whose
        prefix is in these."""
        replica = self._replica
        total = replica.num_blocks_for(sequence.num_known_tokens)
        return total - len(cached) + replica.pool.num_idle(cached) + self._spared_blocks()

    def _spared_blocks(self) -> int:
        """Alone on the replica a sequence may have every block."""
        replica = self._replica
        return replica.watermark_blocks if replica.slots.num_running else 0

    def _let_draft(self, num_tokens: int) -> None:
        """Drafts take blocks that nobody waits for, and none from who is running."""
        replica, budget, draft = self._replica, self._budget, self._draft
        allowance = replica.speculation.allow(replica.next_step, num_tokens, budget.tokens)
        if allowance is None:
            return
        for slot, length in allowance.lengths:
            spare = replica.pool.num_available - replica.watermark_blocks
            num_blocks = 0 if len(replica.queue) else max(0, spare)
            held = len(replica.slots.tenant(slot).blocks)
            granted, gained = replica.draft(slot, length, num_blocks, at_least=allowance.least)
            if granted:
                draft.append(slot, held, gained)
                draft.draft_slot.append(slot)
                draft.draft_length.append(granted)
        draft.max_draft_tokens = min(allowance.most, sum(draft.draft_length))
        draft.min_draft_tokens = allowance.least
        budget.spend(tokens=draft.max_draft_tokens)

    def _send(self, num_decodes: int, num_tokens: int) -> Plan:
        """`num_tokens` without drafts."""
        replica, draft = self._replica, self._draft
        # Whoever caught up with its known tokens in this step decodes from the next one on, so the
        # decode set is read first.
        decode = replica.calendar.take_change()
        caught_up = replica.catch_up()
        named, unnamed = replica.pool.take_changes()
        most = draft.max_draft_tokens
        drafts = _column(draft.draft_slot), _column(draft.draft_length), most
        step_id, retire = replica.send(decode, caught_up, drafts, num_tokens, self._now)
        return Plan(
            step_id=step_id,
            retire=retire,
            admit=tuple(draft.admit),
            append_slot=_column(draft.append_slot),
            append_index=_column(draft.append_index),
            append_block=_column(draft.append_block),
            decode=decode,
            chunk_slot=_column(draft.chunk_slot),
            chunk_start=_column(draft.chunk_start),
            chunk_length=_column(draft.chunk_length),
            num_tokens=num_tokens + most,
            named_block=_column(list(named)),
            block_name=b"".join(named.values()),
            unnamed_block=_column(unnamed),
            draft_slot=drafts[0],
            draft_length=drafts[1],
            max_draft_tokens=most,
            min_draft_tokens=draft.min_draft_tokens if most else 0,
            graph_bucket=0 if draft.chunk_slot else replica.capacity.graph_bucket(num_decodes),
        )
