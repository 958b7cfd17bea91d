"""The running sequences of one replica as a struct of arrays, indexed by slot.

Applying a step result touches only these arrays. Sampled tokens go to `tail`, a ring of one block
per slot: token n of a sequence is at `tail[slot, n % block_size]`. When a block is full its tokens
move on into the sequence's own record, so Python runs once per block and not once per token.
"""

import numpy as np

from scheduler.core.events import BoolColumn, Int32Column
from scheduler.core.sequence import Sequence


class SlotTable:
    """Slots 0 to num_slots - 1."""

    def __init__(self, num_slots: int, block_size: int) -> None:
        self.num_slots = num_slots
        self.block_size = block_size
        self.sequence: list[Sequence | None] = [None] * num_slots
        self.held = np.zeros(num_slots, np.bool_)
        self.generation = np.zeros(num_slots, np.int32)
        """Tenants so far: a result that names a slot says which of them it means."""
        self.num_tokens = np.zeros(num_slots, np.int32)
        """Confirmed tokens, prompt and output."""
        self.max_total_tokens = np.zeros(num_slots, np.int32)
        self.router = np.zeros(num_slots, np.int32)
        self.sequence_id = np.zeros(num_slots, np.int32)
        self.awaits_first_token = np.zeros(num_slots, np.bool_)
        self.num_paid = np.zeros(num_slots, np.int32)
        """Of the confirmed tokens, those that the tenant's account was charged for."""
        self.account = np.zeros(num_slots, np.int32)
        """Index of the tenant's account (fairness.py)."""
        self.tail = np.zeros((num_slots, block_size), np.int32)
        self._free = list(range(num_slots - 1, -1, -1))
        self._num_running = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_running(self) -> int:
        return self._num_running

    def running(self) -> list[Sequence]:
        """Everyone who holds a slot, in slot order."""
        return [sequence for sequence in self.sequence if sequence is not None]

    def tenant(self, slot: int) -> Sequence:
        """Who holds the slot; someone must."""
        sequence = self.sequence[slot]
        assert sequence is not None, f"slot {slot} is vacant"
        return sequence

    def occupy(self, sequence: Sequence, tokens: Int32Column) -> int:
        """Give a free slot to a sequence with these tokens; returns the tenancy's generation."""
        slot = self._free.pop()
        sequence.slot = slot
        self.sequence[slot] = sequence
        self._num_running += 1
        self.held[slot] = True
        self.generation[slot] += 1
        self.num_tokens[slot] = len(tokens)
        self.num_paid[slot] = len(tokens)
        self.account[slot] = sequence.account.index
        self.max_total_tokens[slot] = sequence.max_total_tokens
        self.router[slot] = sequence.request.router
        self.sequence_id[slot] = np.uint32(sequence.sequence_id).astype(np.int32)
        self.awaits_first_token[slot] = sequence.first_token_at is None
        partial = len(tokens) % self.block_size
        self.tail[slot, :partial] = tokens[len(tokens) - partial :]
        return int(self.generation[slot])

    def are_held(self, slot: Int32Column, generation: Int32Column) -> BoolColumn:
        """Which of these tenancies go on."""
        same: BoolColumn = self.generation.take(slot) == generation
        return same & self.held.take(slot)

    def take_unpaid(self) -> Int32Column:
        """By slot, confirmed tokens that were not charged for yet; they are from here on."""
        num_unpaid: Int32Column = self.num_tokens - self.num_paid
        self.num_paid[:] = self.num_tokens
        return num_unpaid

    def take_unpaid_of(self, slot: int) -> int:
        """The same for one slot."""
        num_unpaid = int(self.num_tokens[slot] - self.num_paid[slot])
        self.num_paid[slot] = self.num_tokens[slot]
        return num_unpaid

    def take_back(self, sequence: Sequence) -> None:
        """Move confirmed tokens from the tail into the sequence's record."""
        known = sequence.num_known_tokens
        count = int(self.num_tokens[sequence.slot]) - known
        start = known % self.block_size
        sequence.output.frombytes(self.tail[sequence.slot, start : start + count].tobytes())

    def vacate(self, sequence: Sequence) -> int:
        """The tenant leaves with its tokens; the slot is not free before `free(slot)`."""
        self.take_back(sequence)
        slot = sequence.slot
        self.sequence[slot] = None
        self._num_running -= 1
        self.held[slot] = False
        return slot

    def free(self, slot: int) -> None:
        """The slot may have a new tenant."""
        self._free.append(slot)

    def check_integrity(self, in_limbo: list[int]) -> None:
        """Raises AssertionError unless each slot is free, in limbo or held by its tenant."""
        held = [slot for slot, sequence in enumerate(self.sequence) if sequence is not None]
        everyone = sorted([*held, *in_limbo, *self._free])
        assert everyone == list(range(self.num_slots)), "a slot is lost"
        assert len(held) == self._num_running, "running sequences are miscounted"
        for slot in range(self.num_slots):
            sequence = self.sequence[slot]
            assert (sequence is not None) == self.held[slot], "a vacant slot is held"
            assert sequence is None or sequence.slot == slot, "a tenant is elsewhere"
