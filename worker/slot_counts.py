"""The host's counts of each slot: how far it is, as if no slot ever ended on the device.

They follow from the plans alone. So which chunk is a sequence's last, or how long a row's context
is at most, needs no word from the device; and a plan that contradicts them is caught before it
corrupts anything.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.plans import Admission, BatchPlan, Int32Column, PlanError

Int64Column = npt.NDArray[np.int64]
BoolColumn = npt.NDArray[np.bool_]

_MAX_GENERATION = np.iinfo(np.int32).max


@dataclass(frozen=True)
class ChunkRows:
    """A step's chunks; all columns share an index.

    Attributes:
        slots: whose tokens.
        start: position of each chunk's first token.
        length: tokens.
        end: start + length.
        samples: whether the chunk computes its slot's newest known token, so that the row samples;
            never where the prompt's vector is wanted.
    """

    slots: Int64Column
    start: Int64Column
    length: Int64Column
    end: Int64Column
    samples: BoolColumn


class SlotCounts:
    """Counts by slot, changed by plans in order.

    Args:
        max_num_seqs: slots.
        max_model_len: tokens a sequence may hold.
        num_blocks: usable KV blocks, ids 1 to num_blocks.
        block_size: tokens per block.

    Attributes:
        max_blocks: entries of a block table.
        decode_slots: the decode set, in batch order.
        membership: changes whenever the decode set or what its slots hold may have changed.
        generation: of each slot's sequence.
        max_total: tokens that each slot's sequence may come to.
        ended: slots whose sequence has ended, as far as the host knows.
    """

    def __init__(
        self, *, max_num_seqs: int, max_model_len: int, num_blocks: int, block_size: int
    ) -> None:
        self._max_model_len = max_model_len
        self._num_blocks = num_blocks
        self._block_size = block_size
        self.max_blocks = -(-max_model_len // block_size)
        self.decode_slots: Int64Column = np.empty(0, np.int64)
        self.membership = 0
        self.generation: Int32Column = np.zeros(max_num_seqs, np.int32)
        self.max_total: Int64Column = np.zeros(max_num_seqs, np.int64)
        self.ended: BoolColumn = np.zeros(max_num_seqs, np.bool_)
        self._admitted: BoolColumn = np.zeros(max_num_seqs, np.bool_)
        self._num_computed: Int64Column = np.zeros(max_num_seqs, np.int64)
        self._num_known: Int64Column = np.zeros(max_num_seqs, np.int64)
        # Positions that have a block.
        self._room: Int64Column = np.zeros(max_num_seqs, np.int64)
        self._samples_nothing: BoolColumn = np.zeros(max_num_seqs, np.bool_)
        # Its accepted drafts may have ended it sooner than plans made before then could know.
        self._has_drafted: BoolColumn = np.zeros(max_num_seqs, np.bool_)

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended, as far as the host knows."""
        return int(np.count_nonzero(self._admitted & ~self.ended))

    def reset(self) -> None:
        """Forgets every sequence."""
        self._admitted[:] = False
        self.ended[:] = False
        self.decode_slots = np.empty(0, np.int64)
        self.membership += 1

    def end(
        self,
        slots: npt.NDArray[np.integer],
        generation: Int32Column,
        finish: npt.NDArray[np.integer],
    ) -> None:
        """Notes what the device said of some rows: those with a finish reason have ended.

        News of a generation that has left its slot is dropped.
        """
        if finish.any():
            ended = slots[(finish > 0) & (self.generation[slots] == generation)]
            self.ended[ended] = True

    # --- what a plan changes ---------------------------------------------------------------------

    def apply(self, plan: BatchPlan) -> None:
        """Retires, admits, appends blocks and sets the decode set.

        Raises `PlanError` when the plan contradicts the counts, which are then unusable until the
        next `reset`.
        """
        if len(plan.retire):
            self._check_admitted("retire_slot", plan.retire)
            self._admitted[plan.retire] = False
            self.ended[plan.retire] = False
        for admission in plan.admit:
            self._admit(admission)
        self._append(plan.append_slot, plan.append_index, plan.append_block)
        if plan.decode is not None:
            self.decode_slots = plan.decode.astype(np.int64)
        if len(plan.retire) or plan.admit or plan.decode is not None:
            self.membership += 1
            self._check_admitted("decode_slot", self.decode_slots)
            self._check_once("decode_slot", self.decode_slots)

    def _admit(self, admission: Admission) -> None:
        slot, num_tokens = admission.slot, len(admission.token_ids)
        if not 0 <= slot < len(self._admitted) or self._admitted[slot]:
            raise PlanError(f"slot {slot} is admitted, but it is not free")
        room = admission.max_total_tokens - num_tokens
        if not 0 <= admission.num_computed < num_tokens or (
            room != 0 if admission.wants_vector else room < 1
        ):
            raise PlanError(
                f"slot {slot} is admitted with {num_tokens} tokens, {admission.num_computed} of "
                f"them computed, and room for {admission.max_total_tokens}"
            )
        if admission.max_total_tokens > self._max_model_len:
            raise PlanError(
                f"slot {slot} is admitted with max_total_tokens {admission.max_total_tokens}; "
                f"this worker holds at most {self._max_model_len}"
            )
        if admission.generation > _MAX_GENERATION:
            raise PlanError(
                f"slot {slot} is admitted with generation {admission.generation}; columns of "
                f"results have room for {_MAX_GENERATION}"
            )
        self._admitted[slot] = True
        self.ended[slot] = False
        self._has_drafted[slot] = False
        self.generation[slot] = admission.generation
        self._num_computed[slot] = admission.num_computed
        self._num_known[slot] = num_tokens
        self._room[slot] = 0
        self.max_total[slot] = admission.max_total_tokens
        self._samples_nothing[slot] = admission.wants_vector
        index = np.arange(len(admission.blocks), dtype=np.int32)
        self._append(np.full_like(index, slot), index, admission.blocks)

    def _append(self, slots: Int32Column, index: Int32Column, blocks: Int32Column) -> None:
        if not len(slots):
            return
        self._check_admitted("append_slot", slots)
        if index.min() < 0 or index.max() >= self.max_blocks:
            raise PlanError(f"a block is appended beyond the {self.max_blocks} a sequence may use")
        if blocks.min() < 1 or blocks.max() > self._num_blocks:
            raise PlanError(f"a block is appended whose id is not 1 to {self._num_blocks}")
        np.maximum.at(self._room, slots, (index + 1) * self._block_size)

    def _check_admitted(self, column: str, slots: npt.NDArray[np.integer]) -> None:
        if not len(slots):
            return
        if slots.min() < 0 or slots.max() >= len(self._admitted) or not self._admitted[slots].all():
            raise PlanError(f"{column} names a slot that holds no sequence")

    @staticmethod
    def _check_once(column: str, slots: Int64Column) -> None:
        if len(slots) and np.bincount(slots).max() > 1:
            raise PlanError(f"{column} names a slot twice")

    # --- what a step computes --------------------------------------------------------------------

    def advance_decodes(self) -> Int64Column:
        """Counts one more token for each slot of the decode set.

        Returns the positions that they compute, as if none had ended. Raises `PlanError` when a
        position's token is not known or has no block.
        """
        slots = self.decode_slots
        computed = self._num_computed[slots]
        known = computed + 1
        if (known != self._num_known[slots]).any():
            raise PlanError("a slot decodes before its prompt is computed")
        if (beyond := known > np.minimum(self._room[slots], self.max_total[slots] - 1)).any():
            self._check_ended_by_drafts(slots[beyond])
        self._num_computed[slots] = known
        self._num_known[slots] = known + 1
        return computed

    def _check_ended_by_drafts(self, slots: Int64Column) -> None:
        """Raises `PlanError` unless these, which decode where they cannot, have all ended so."""
        going_on = slots[~(self.ended & self._has_drafted)[slots]]
        if (self._num_computed[going_on] >= self._room[going_on]).any():
            raise PlanError("a slot decodes at a position that has no block")
        if len(going_on):
            raise PlanError("a slot decodes beyond max_total_tokens")

    def drafting(self, plan: BatchPlan) -> list[tuple[int, int, int]]:
        """Slots of the decode set that may draft, when that has been advanced: (index in the
        plan's columns, position that the slot computes, tokens it may draft behind that), without
        those that have ended. Raises `PlanError` as `advance_decodes`."""
        found, seen = [], set()
        decoding = set(self.decode_slots.tolist())
        columns = (plan.draft_slot.tolist(), plan.draft_length.tolist())
        for index, (slot, length) in enumerate(zip(*columns, strict=True)):
            if not (0 <= slot < len(self._admitted) and self._admitted[slot]):
                raise PlanError("draft_slot names a slot that holds no sequence")
            if slot in seen:
                raise PlanError("draft_slot names a slot twice")
            seen.add(slot)
            if slot not in decoding:
                raise PlanError("a slot drafts that does not decode")
            if length < 1:
                raise PlanError("a slot drafts less than a token")
            if self.ended[slot]:
                continue
            position = int(self._num_computed[slot]) - 1
            if position + length >= self._room[slot]:
                raise PlanError("a slot drafts at a position that has no block")
            if position + length + 1 >= self.max_total[slot]:
                raise PlanError("a slot drafts beyond max_total_tokens")
            found.append((index, position, length))
        return found

    def accept(self, slots: Int64Column, num_tokens: Int64Column) -> None:
        """Counts tokens that were drafted and accepted, of slots that go on."""
        self._has_drafted[slots] |= num_tokens > 0
        goes_on = ~self.ended[slots]
        self._num_computed[slots[goes_on]] += num_tokens[goes_on]
        self._num_known[slots[goes_on]] += num_tokens[goes_on]

    def advance_chunks(self, plan: BatchPlan) -> ChunkRows:
        """Counts the plan's chunks as computed; raises `PlanError` as `advance_decodes`."""
        slots = plan.chunk_slot.astype(np.int64)
        start, length = plan.chunk_start.astype(np.int64), plan.chunk_length.astype(np.int64)
        end = start + length
        self._check_admitted("chunk_slot", slots)
        self._check_once("chunk_slot", slots)
        if (start != self._num_computed[slots]).any() or (end <= start).any():
            raise PlanError("a chunk does not start where its sequence's computed tokens end")
        if (end > self._num_known[slots]).any():
            raise PlanError("a chunk reaches beyond its sequence's known tokens")
        if (end > self._room[slots]).any():
            raise PlanError("a chunk covers positions that have no block")
        samples = (end == self._num_known[slots]) & ~self._samples_nothing[slots]
        self._num_computed[slots] = end
        self._num_known[slots] += samples
        return ChunkRows(slots, start, length, end, samples)
