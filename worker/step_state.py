"""The host runner's mirror: what each slot is, changed by plans and by what was sampled.

A plan says what changes and names slots; values stay here:

    token_table[slot, position]     tokens known so far
    block_table[slot, index]        KV blocks

How far each slot is and whether it has ended, `worker.slot_counts` knows. All are arrays of
numpy's: for the few entries of a step its operations take a fraction of the time that torch's do.

The mirror is disposable: `reset` forgets everything, and the scheduler admits anew.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from kernels.batch import AttentionBatch
from worker.drafts import Drafts, continuation
from worker.plans import Admission, BatchPlan, FinishReason, Int32Column, UInt8Column, Vectors
from worker.slot_counts import BoolColumn, ChunkRows, Int64Column, SlotCounts

_NONE = np.empty(0, np.int32)
_NO_TOKEN = -1


@dataclass(frozen=True)
class SampledRows:
    """The rows of a step that sample: decode rows, chunks' last ones, and every row of slots that
    have drafted; the first three share an index.

    Attributes:
        slots: whose they are.
        position: the index the new token takes; of ended slots, 1.
        live: false for slots that have ended.
        membership: changes whenever `slots` may differ from the step before; None when the rows are
            of this step alone.
        drafts: of the slots that have drafted, whose rows are the last ones; None: of no slot.
        drafted: tokens that each slot of the plan's `draft_slot` has drafted.
    """

    slots: Int64Column
    position: Int64Column
    live: BoolColumn
    membership: int | None
    drafts: Drafts | None = None
    drafted: Int32Column = field(default_factory=lambda: _NONE)


@dataclass(frozen=True)
class SampledColumns:
    """What the live rows of a step yielded; the columns share an index."""

    slot: Int32Column
    generation: Int32Column
    token_id: Int32Column
    finish: UInt8Column
    row: Int64Column
    """Index among the step's sampled rows, ended ones included."""

    @classmethod
    def none(cls) -> "SampledColumns":
        """Of a step in which no row sampled."""
        return cls(_NONE, _NONE, _NONE, np.empty(0, np.uint8), np.empty(0, np.int64))


class StepState:
    """Fixed-size tables indexed by slot.

    Args:
        max_num_seqs: slots.
        max_model_len: tokens a sequence may hold.
        num_blocks: usable KV blocks, ids 1 to num_blocks.
        block_size: tokens per block.
        vocab_size: token ids are 0 to vocab_size - 1.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
    ) -> None:
        self._counts = SlotCounts(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            block_size=block_size,
        )
        self._block_size = block_size
        self._vocab_size = vocab_size
        # Memory is touched only as slots use it.
        self._token_table = np.zeros((max_num_seqs, max_model_len), np.int32)
        self._block_table = np.zeros((max_num_seqs, self._counts.max_blocks), np.int32)
        self._invalid = np.zeros(max_num_seqs, np.bool_)
        self._can_draft = np.zeros(max_num_seqs, np.bool_)
        # As wide as the most stop tokens of a sequence; filled up with what is never sampled.
        self._stop_table = np.full((max_num_seqs, 1), _NO_TOKEN, np.int32)
        self._set_decode()

    @property
    def tokens(self) -> torch.Tensor:
        """[slots, max_model_len] int32, the tokens known so far."""
        return torch.from_numpy(self._token_table)

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended."""
        return self._counts.num_live

    def reset(self) -> None:
        """Forgets every sequence."""
        self._counts.reset()
        self._set_decode()

    # --- plan -> state ---------------------------------------------------------------------------

    def apply(self, plan: BatchPlan) -> None:
        """Changes the mirror by a plan: retire, admit, block appends, decode set.

        Raises `PlanError` when the plan contradicts the mirror; the mirror is then unusable until
        the next `reset`.
        """
        self._counts.apply(plan)
        for admission in plan.admit:
            self._fill_slot(admission)
        if len(plan.append_slot):
            self._block_table[plan.append_slot, plan.append_index] = plan.append_block
        if plan.decode is not None:
            self._set_decode()

    def _fill_slot(self, admission: Admission) -> None:
        slot, tokens, blocks = admission.slot, admission.token_ids, admission.blocks
        # A token that the model does not have ends the one sequence, not the worker.
        valid = (tokens >= 0) & (tokens < self._vocab_size)
        self._invalid[slot] = not valid.all()
        self._can_draft[slot] = admission.sampling.can_draft
        self._token_table[slot, : len(tokens)] = np.where(valid, tokens, 0)
        self._block_table[slot, : len(blocks)] = blocks
        stops = admission.sampling.stop_token_ids
        missing = len(stops) - self._stop_table.shape[1]
        if missing > 0:
            wider = ((0, 0), (0, missing))
            self._stop_table = np.pad(self._stop_table, wider, constant_values=_NO_TOKEN)
        self._stop_table[slot] = _NO_TOKEN
        self._stop_table[slot, : len(stops)] = stops

    def _set_decode(self) -> None:
        count = len(self._counts.decode_slots)
        self._decode_cu_seqlens = torch.arange(count + 1, dtype=torch.int32)
        self._decode_index = torch.arange(count)

    # --- state -> batch --------------------------------------------------------------------------

    def next_batch(self, plan: BatchPlan) -> tuple[AttentionBatch, SampledRows]:
        """The rows of the step whose changes were just applied; counts them as computed.

        Raises `PlanError` when the plan computes tokens that are not known or have no block.
        """
        slots, position = self._counts.decode_slots, self._counts.advance_decodes()
        drafts, drafted = self._draft(plan) if len(plan.draft_slot) else (None, _NONE)
        live = ~self._counts.ended[slots]
        position *= live
        if drafts is None and not len(plan.chunk_slot):
            return self._decode_batch(slots, position, live, drafted)
        chunks = self._counts.advance_chunks(plan)
        if drafts is not None:
            alone = ~np.isin(slots, drafts.slots)
            slots, position = slots[alone], position[alone]
        return self._mixed_batch(slots, position, chunks, drafts, drafted)

    def _draft(self, plan: BatchPlan) -> tuple[Drafts | None, Int32Column]:
        """What is supposed, which becomes part of the token table: beyond what is known, and so
        read by nobody else. And how many tokens that is for each slot that may draft."""
        drafted = np.zeros(len(plan.draft_slot), np.int32)
        supposed = []
        for index, position, most in self._counts.drafting(plan):
            slot = int(plan.draft_slot[index])
            if self._can_draft[slot]:
                known = self._token_table[slot, : position + 1]
                supposed.append((index, position, continuation(known, most)))
        chosen, left = [], plan.max_draft_tokens
        for index, position, tokens in sorted(supposed, key=lambda one: -len(one[2])):
            tokens = tokens[:left]
            if not len(tokens) or len(tokens) < plan.min_draft_tokens:
                break
            left -= len(tokens)
            drafted[index] = len(tokens)
            slot, end = int(plan.draft_slot[index]), position + 1 + len(tokens)
            self._token_table[slot, position + 1 : end] = tokens
            chosen.append((slot, position, tokens))
        if not chosen:
            return None, drafted
        slots = np.array([slot for slot, _, _ in chosen])
        positions = np.array([position for _, position, _ in chosen])
        return Drafts(slots, positions, tuple(tokens for _, _, tokens in chosen)), drafted

    def _decode_batch(
        self, slots: Int64Column, position: Int64Column, live: BoolColumn, drafted: Int32Column
    ) -> tuple[AttentionBatch, SampledRows]:
        end = position + 1
        batch = AttentionBatch(
            token_ids=torch.from_numpy(self._token_table[slots, position]),
            positions=torch.from_numpy(position),
            cu_seqlens=self._decode_cu_seqlens,
            seq_lens=torch.from_numpy(end.astype(np.int32)),
            block_table=self._blocks(slots, end, live),
            num_decodes=len(slots),
            sample_index=self._decode_index,
        )
        return batch, SampledRows(slots, end, live, self._counts.membership, drafted=drafted)

    def _mixed_batch(
        self,
        decode_slots: Int64Column,
        decode_position: Int64Column,
        chunks: ChunkRows,
        drafts: Drafts | None,
        drafted: Int32Column,
    ) -> tuple[AttentionBatch, SampledRows]:
        """Decode rows, then chunks, then the rows of slots that have drafted, which are like chunks
        of which every token samples."""
        one = np.ones_like(decode_slots)
        parts = [
            (decode_slots, decode_position, one, one),
            (chunks.slots, chunks.start, chunks.length, chunks.samples),
        ]
        if drafts is not None:
            parts.append((drafts.slots, drafts.position, drafts.length, drafts.length))
        slots, start, length, num_sampled = map(np.concatenate, zip(*parts, strict=True))
        end, live = start + length, ~self._counts.ended[slots]
        positions = _runs(start, length)
        cu_seqlens = np.concatenate(([0], np.cumsum(length)))
        unsampled = length - num_sampled
        batch = AttentionBatch(
            token_ids=torch.from_numpy(self._token_table[np.repeat(slots, length), positions]),
            positions=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            seq_lens=torch.from_numpy(end.astype(np.int32)),
            block_table=self._blocks(slots, end, live),
            num_decodes=len(decode_slots),
            sample_index=torch.from_numpy(_runs(cu_seqlens[:-1] + unsampled, num_sampled)),
        )
        sampled_slots = np.repeat(slots, num_sampled)
        only_decodes = len(sampled_slots) == len(decode_slots)
        rows = SampledRows(
            slots=sampled_slots,
            position=_runs(start + unsampled, num_sampled) + 1,
            live=np.repeat(live, num_sampled),
            membership=self._counts.membership if only_decodes else None,
            drafts=drafts,
            drafted=drafted,
        )
        return batch, rows

    def _blocks(self, slots: Int64Column, end: Int64Column, live: BoolColumn) -> torch.Tensor:
        """The block tables of rows whose context has so many tokens, at least one column wide."""
        width = (int(end.max(initial=1)) - 1) // self._block_size + 1
        tables = self._block_table[slots, :width]
        tables *= live[:, None]
        return torch.from_numpy(tables)

    # --- tokens -> state -------------------------------------------------------------------------

    def commit(
        self, rows: SampledRows, token_id: Int64Column, failed: BoolColumn
    ) -> SampledColumns:
        """Stores a step's tokens and decides who has ended.

        Args:
            rows: the sampled rows, as `next_batch` gave them.
            token_id: what was sampled, by row.
            failed: rows whose logits were not finite.
        """
        slots, counts = rows.slots, self._counts
        token = token_id.astype(np.int32)
        finish = np.zeros(len(slots), np.uint8)
        finish[rows.position + 1 >= counts.max_total[slots]] = FinishReason.LENGTH
        finish[(token[:, None] == self._stop_table[slots]).any(axis=1)] = FinishReason.STOP
        finish[failed | self._invalid[slots]] = FinishReason.ERROR
        live = rows.live
        if rows.drafts is not None:
            first = len(live) - int(rows.drafts.length.sum())
            kept = rows.drafts.kept(token[first:], finish[first:])
            live = np.concatenate((live[:first], *kept))

        row = np.flatnonzero(live)
        slot, token = slots[row], token[row]
        self._token_table[slot, rows.position[row]] = token
        columns = SampledColumns(
            slot=slot.astype(np.int32),
            generation=counts.generation[slot],
            token_id=token,
            finish=finish[row],
            row=row,
        )
        counts.end(slot, columns.generation, columns.finish)
        if rows.drafts is not None:
            # Each of them was counted as one token further; it may have got further than that.
            num_tokens = np.count_nonzero(rows.drafts.slots[:, None] == slot, axis=1)
            counts.accept(rows.drafts.slots, num_tokens - 1)
        return columns

    def end(self, vectors: Vectors) -> None:
        """Sequences that have their vector, and so have ended."""
        self._counts.end(vectors.slot, vectors.generation, vectors.finish)


def _runs(start: Int64Column, length: Int64Column) -> Int64Column:
    """start, start + 1, ... of so many numbers, one run after another."""
    first = np.cumsum(length) - length
    numbers: Int64Column = np.arange(length.sum()) + np.repeat(start - first, length)
    return numbers
