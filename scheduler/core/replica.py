"""One attached replica: its blocks, slots, queue, and the plans it has been sent.

Who owns what while a sequence is here:

    waiting   queue                       nothing of the replica
    running   slots, prefilling/calendar  its slot, one reference to each of its blocks
              and perhaps speculation     blocks that it may draft into
    left      limbo                       the same slot and references, until the fence

`planner.py` decides what a step does and `results.py` applies what it produced; both work through
the methods here, so that every change of hands is in this file.
"""

from dataclasses import replace

import numpy as np

from scheduler.core.block_hash import BlockHasher
from scheduler.core.block_pool import BlockPool
from scheduler.core.config import CoreConfig
from scheduler.core.decisions import Admission
from scheduler.core.decode_calendar import DecodeCalendar
from scheduler.core.events import Capacity, Int32Column, Inventory, Request
from scheduler.core.fairness import CHARGE_EVERY, Accounts
from scheduler.core.in_flight import InFlight, Sent
from scheduler.core.limbo import Remains
from scheduler.core.prefixes import Prefixes
from scheduler.core.sequence import Sequence, Status
from scheduler.core.slots import SlotTable
from scheduler.core.speculation import Speculation
from scheduler.core.state import Counters
from scheduler.core.waiting import WaitingQueue

_NONE = np.empty(0, np.int32)


class Replica:
    """Everything the core knows about one replica; gone as a whole when it detaches."""

    def __init__(
        self,
        name: str,
        capacity: Capacity,
        config: CoreConfig,
        hasher: BlockHasher,
        accounts: Accounts,
    ) -> None:
        self.name = name
        self.capacity = capacity
        self.block_size = capacity.block_size
        self.keeps_kv = capacity.num_blocks > 0
        self.max_step_tokens = min(config.max_num_batched_tokens, capacity.max_num_batched_tokens)
        # Each decoding slot costs a token in every step, so more slots than tokens cannot run.
        num_slots = min(config.max_num_seqs, capacity.max_num_seqs, self.max_step_tokens)
        self.watermark_blocks = int(np.ceil(config.watermark * capacity.num_blocks))
        self.slots = SlotTable(num_slots, self.block_size)
        self.pool = BlockPool(capacity.num_blocks, keeps_prefixes=config.enable_prefix_caching)
        self.prefixes = Prefixes(
            self.pool,
            capacity,
            hasher,
            among_requests=config.enable_prefix_caching and self.keeps_kv,
        )
        self.calendar = DecodeCalendar(num_slots, self.block_size)
        self.speculation = Speculation(
            min(config.max_draft_tokens, capacity.max_draft_tokens),
            step_tokens=1 + config.max_draft_tokens,
        )
        self.in_flight = InFlight(name)
        self.queue = WaitingQueue()
        self.counters = Counters()
        self.prefilling: dict[int, Sequence] = {}
        """Running sequences with known tokens still to compute, by slot."""
        self.blocked = False
        """The last plan left sequences waiting that another replica could start sooner."""
        self.is_reserved = False
        """For suspects (quarantine.py): nobody else is placed here."""
        self.accounts = accounts

    @property
    def is_empty(self) -> bool:
        """No sequence is here, and no plan that computed one is in flight."""
        return not (len(self.in_flight) or len(self.queue) or self.slots.num_running)

    @property
    def next_step(self) -> int:
        """The step that is planned next."""
        return self.in_flight.next_step

    def adopt(self, inventory: Inventory) -> None:
        """Its blocks, all of them free, hold these prefixes under its own seed."""
        self.pool.adopt(inventory.block.tolist(), inventory.name)

    # ---- what fits, and what is cached

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens; none where no KV is kept."""
        return -(-num_tokens // self.block_size) if self.keeps_kv else 0

    def least_chunk(self, num_tokens: int) -> int:
        """The fewest of so many known tokens that a step may compute: without KV, all of them."""
        return 1 if self.keeps_kv else num_tokens

    def can_hold(self, request: Request) -> bool:
        """Whether a sequence of this request could run here alone."""
        return (
            request.max_total_tokens <= self.capacity.max_model_len
            and self.num_blocks_for(request.num_positions) <= self.capacity.num_blocks
            and self.least_chunk(request.num_positions) <= self.max_step_tokens
            and (self.keeps_kv or request.max_tokens == 0)
        )

    def num_computed(self, sequence: Sequence) -> int:
        """Positions that sent plans compute for a running sequence, if all is accepted that they
        let it draft."""
        slot = sequence.slot
        if slot in self.calendar:
            furthest = self.calendar.position(slot, self.next_step)
            return min(furthest + self.speculation.num_ahead(slot), sequence.num_positions)
        return sequence.num_computed_tokens

    def short_of_blocks(self) -> list[int]:
        """Decoding slots that need one block more for `next_step`, in slot order."""
        slots = self.calendar.crossing(self.next_step)
        if self.speculation.is_idle:
            return slots
        return sorted(filter(self._is_short, self.speculation.ahead.union(slots)))

    def _is_short(self, slot: int) -> bool:
        sequence = self.slots.tenant(slot)
        num_positions = min(self.num_computed(sequence) + 1, sequence.num_positions)
        return len(sequence.blocks) < self.num_blocks_for(num_positions)

    # ---- changes of hands

    def enqueue(self, sequence: Sequence) -> None:
        """Wait here."""
        cached = len(self.prefixes.cached_blocks(sequence)) * self.block_size
        sequence.replica = self.name
        self.queue.push(sequence, sequence.num_known_tokens - cached)

    def admit(self, sequence: Sequence, cached: list[int], now: float) -> Admission:
        """From the queue to a slot, with the cached blocks of its prefix."""
        self.queue.remove(sequence)
        sequence.move(Status.RUNNING)
        self.pool.acquire(cached)
        tokens = sequence.tokens()
        generation = self.slots.occupy(sequence, tokens)
        sequence.blocks = list(cached)
        sequence.num_computed_tokens = len(cached) * self.block_size
        self.prefilling[sequence.slot] = sequence
        if sequence.admitted_at is None:
            self._note_first_admission(sequence, now)
        return Admission(
            slot=sequence.slot,
            generation=generation,
            token_ids=tokens,
            num_prompt_tokens=sequence.request.num_prompt_tokens,
            max_total_tokens=sequence.max_total_tokens,
            blocks=np.array(cached, np.int32),
            num_computed=sequence.num_computed_tokens,
            seed=sequence.seed,
            sampling=sequence.request.sampling,
            score_from=(
                sequence.request.num_prompt_tokens
                if sequence.score_from is None
                else sequence.score_from
            ),
        )

    def _note_first_admission(self, sequence: Sequence, now: float) -> None:
        sequence.admitted_at = now
        arrival, serial = sequence.order
        sequence.standing = (now + (arrival - sequence.accepted_at), serial)
        cached = sequence.num_computed_tokens
        sequence.num_cached_tokens = min(cached, sequence.request.num_prompt_tokens)
        if self.prefixes.among_requests:
            self.counters.num_prefix_query_tokens += sequence.num_known_tokens
            self.counters.num_prefix_hit_tokens += cached

    def compute(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Plan the next known tokens of a sequence in `next_step`; returns the blocks it gained."""
        start = sequence.num_computed_tokens
        end = start + num_tokens
        gained = self.pool.allocate(self.num_blocks_for(end) - len(sequence.blocks))
        sequence.blocks += gained
        sequence.num_computed_tokens = end
        unpaid = end - max(start, sequence.num_paid_tokens)
        if unpaid > 0:
            self.accounts.charge_input(sequence.account, unpaid)
            sequence.num_paid_tokens = end
        sequence.last_step = self.next_step
        self.prefixes.name_known(sequence, start, end)
        return gained

    def catch_up(self) -> list[Sequence]:
        """Sequences whose known tokens are all planned decode from the step after `next_step` on,
        unless what `next_step` yields, a token or a vector, is their last. Returns them all."""
        caught_up = [
            s for s in self.prefilling.values() if s.num_computed_tokens == s.num_known_tokens
        ]
        for sequence in caught_up:
            del self.prefilling[sequence.slot]
            position, last_position = sequence.num_computed_tokens, sequence.num_positions - 1
            if position <= last_position:
                self.calendar.enter(
                    sequence.slot,
                    step=self.next_step + 1,
                    position=position,
                    last_position=last_position,
                )
                if sequence.request.can_draft:
                    self.speculation.enter(sequence.slot)
        return caught_up

    def draft(
        self, slot: int, num_tokens: int, num_blocks: int, *, at_least: int
    ) -> tuple[int, list[int]]:
        """Let a decoding slot draft up to so many tokens in `next_step`, in the blocks it has and
        up to `num_blocks` more. Returns how many tokens, and the blocks it gained; none if that
        would be less than `at_least`."""
        sequence = self.slots.tenant(slot)
        newest = self.num_computed(sequence)
        room = (len(sequence.blocks) + num_blocks) * self.block_size
        granted = min(num_tokens, min(room, sequence.num_positions) - newest - 1)
        if granted < at_least:
            return 0, []
        end = newest + 1 + granted
        gained = self.pool.allocate(max(0, self.num_blocks_for(end) - len(sequence.blocks)))
        sequence.blocks += gained
        self.speculation.plan(slot, granted)
        return granted, gained

    def settle_draft(self, slot: int, *, planned: int, drafted: int, accepted: int) -> None:
        """What became of what a plan let a slot draft: it is further by what was accepted."""
        self.counters.num_drafts += drafted > 0
        self.counters.num_draft_tokens += drafted
        self.counters.num_accepted_tokens += accepted
        if slot not in self.calendar:
            return
        sequence = self.slots.tenant(slot)
        self.speculation.settle(
            slot,
            planned=planned,
            drafted=drafted,
            accepted=accepted,
            next_step=self.next_step,
            num_reserved=self.num_computed(sequence),
        )
        position = self.calendar.position(slot, self.next_step) + accepted
        if not accepted:
            return
        if position < sequence.num_positions:
            self.calendar.advance(slot, accepted)
        else:
            self.depart(slot)  # plans without a result compute all that is left

    def depart(self, slot: int) -> None:
        """A decoding slot reached its limit: only its results are missing."""
        sequence = self.slots.tenant(slot)
        sequence.num_computed_tokens = sequence.num_positions
        sequence.last_step = self.next_step - 1
        self.calendar.leave(slot)
        self.speculation.leave(slot)

    def close_blocks(self, slots: Int32Column, num_tokens: Int32Column) -> None:
        """Each slot's tail holds a full block of confirmed tokens whose KV is written: keep and
        name it. `num_tokens` are the slots' confirmed tokens, a multiple of the block size."""
        tails = self.slots.tail[slots]
        stride = tails.itemsize * self.block_size
        data = tails.tobytes()
        for i, (slot, count) in enumerate(zip(slots.tolist(), num_tokens.tolist(), strict=True)):
            tail = data[i * stride : (i + 1) * stride]
            sequence = self.slots.tenant(slot)
            known = sequence.num_known_tokens
            if known < count:
                sequence.output.frombytes(tail[known % self.block_size * tails.itemsize :])
            self.prefixes.name_confirmed(sequence, count // self.block_size - 1, tail)

    def charge_outputs(self) -> None:
        """Bring the tenants' counters up to date."""
        num_unpaid = self.slots.take_unpaid()
        if num_unpaid.any():
            self.accounts.charge_outputs(self.slots.account, num_unpaid)

    def _vacate(self, sequence: Sequence) -> int:
        self.accounts.charge_output(sequence.account, self.slots.take_unpaid_of(sequence.slot))
        slot = self.slots.vacate(sequence)
        sequence.num_paid_tokens = max(sequence.num_paid_tokens, sequence.num_known_tokens)
        return slot

    def release(self, sequence: Sequence) -> None:
        """A running sequence leaves with its tokens; its slot and blocks go to limbo."""
        num_planned = self.num_computed(sequence)
        slot = self._vacate(sequence)
        self.calendar.leave(slot)
        self.speculation.leave(slot)
        self.prefilling.pop(slot, None)
        remains = Remains(self.next_step - 1, slot, sequence.blocks, sequence, num_planned)
        sequence.blocks = []
        sequence.num_computed_tokens = 0
        if not self.in_flight.leave(remains):
            self._set_free(remains)

    def preempt(self, sequence: Sequence) -> None:
        """Back to the queue, with every confirmed token, at its old place in the order."""
        self.withdraw(sequence)
        self.counters.num_preemptions += 1
        self.enqueue(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """A running sequence leaves with every confirmed token; it is to be queued somewhere."""
        self.release(sequence)
        sequence.move(Status.WAITING)
        sequence.num_preemptions += 1

    def abandon(self) -> list[Sequence]:
        """The replica is lost: its running sequences leave it with their tokens, to wait anew."""
        running = self.slots.running()
        for sequence in running:
            self._vacate(sequence)
            sequence.blocks = []
            sequence.num_computed_tokens = 0
            sequence.num_preemptions += 1
            sequence.move(Status.WAITING)
        return running

    def distrust(self, sequence: Sequence) -> None:
        """Its KV may be what went wrong: stop offering every block it used, shared ones too."""
        self.pool.stop_offering(sequence.blocks)

    # ---- plans and results

    def send(
        self,
        decoding: Int32Column | None,
        caught_up: list[Sequence],
        drafts: tuple[Int32Column, Int32Column, int],
        num_tokens: int,
        now: float,
    ) -> tuple[int, Int32Column]:
        """The next step's number, and the slots it retires; it counts as sent from here on. It
        samples for the slots that decode (None: those of the step before) and for those that
        catch up in it, unless they want a vector; `drafts` are slots that may draft, how much each
        and how much together, beside the `num_tokens` that it computes."""
        first, vectors = None, _NONE
        if caught_up:
            first = np.array([s.slot for s in caught_up if s.request.max_tokens > 0], np.int32)
            whole = [s.slot for s in caught_up if s.request.max_tokens == 0]
            vectors = np.array(whole, np.int32)
        return self.in_flight.send(decoding, first, vectors, drafts, num_tokens, now)

    def settle(self, step: int, num_accepted: int, now: float) -> Sent:
        """The result of the oldest plan came, with so many tokens that were drafted: what was
        fenced by it is free. Returns the plan, as far as its slots must have a token in the result
        or a vector. Raises WrongResult."""
        plan = self.in_flight.settle(step, num_accepted, now)
        if step % CHARGE_EVERY == 0:
            self.charge_outputs()
        for remains in self.in_flight.limbo.take(step):
            self._set_free(remains)
        # A slot that somebody left waited in limbo for this result, so it has no new tenant yet.
        held = self.slots.held
        still = held.take(plan.tokens)
        if np.count_nonzero(still) < still.size:
            plan = replace(plan, tokens=plan.tokens[still])
        if plan.vectors.size:
            plan = replace(plan, vectors=plan.vectors[held[plan.vectors]])
        return plan

    def _set_free(self, remains: Remains) -> None:
        self.pool.release(remains.blocks)
        self.slots.free(remains.slot)

    def num_coming_blocks(self) -> int:
        """Blocks that will be available once every plan in flight has its result."""
        mentions = self.in_flight.limbo.mentions()
        return sum(self.pool.references(block) == count for block, count in mentions.items())

    def aboard(self) -> list[tuple[Sequence, int]]:
        """Sequences that a plan without a result computes, with the number of their positions that
        are planned; also those that have left their slot, unless they have ended."""
        if not len(self.in_flight):
            return []
        oldest = self.in_flight.oldest
        left = {
            id(remains.sequence): (remains.sequence, remains.num_planned)
            for remains in self.in_flight.limbo
            if remains.sequence.status is not Status.FINISHED
        }
        running = {
            id(sequence): (sequence, self.num_computed(sequence))
            for sequence in self.slots.running()
            if sequence.slot in self.calendar or sequence.last_step >= oldest
        }
        return [*(left | running).values()]
