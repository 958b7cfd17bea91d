"""The worker's mirror: what each slot is, kept on the device and changed by plans.

A plan says what changes and names slots; values stay here. Sampled tokens, positions and ends never
leave the device to feed the next step:

    token_table[slot, position]     tokens known so far
    block_table[slot, index]        KV blocks
    position[slot]                  tokens whose KV exists = the next decode row's position
    done[slot]                      ended on the device; masked until retired

The host keeps counts of its own (`worker.slot_counts`), so that it need not ask the device.

The mirror is disposable: `reset` forgets everything, and the scheduler admits anew.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from kernels.batch import AttentionBatch
from worker.drafts import Drafts, continuation
from worker.plans import Admission, BatchPlan, FinishReason, Int32Column, UInt8Column, Vectors
from worker.slot_counts import ChunkRows, Int64Column, SlotCounts

_NONE = np.empty(0, np.int32)
_NO_TOKEN = -1


@dataclass(frozen=True)
class SampledRows:
    """The rows of a step that sample: decode rows, chunks' last ones, and every row of slots that
    have drafted; the first six share an index.

    Attributes:
        slots: on the host.
        positions: on the host: the index the new token takes, if the slot had not ended.
        slot: [rows] int64, on the device.
        position: [rows] int64, on the device: the index the new token takes; of ended slots, 1.
        live: [rows] bool, on the device: false for slots that have ended.
        membership: changes whenever `slots` may differ from the step before; None when the rows are
            of this step alone.
        drafts: of the slots that have drafted, whose rows are the last ones; None: of no slot.
        drafted: on the host: tokens that each slot of the plan's `draft_slot` has drafted.
    """

    slots: Int64Column
    positions: Int64Column
    slot: torch.Tensor
    position: torch.Tensor
    live: torch.Tensor
    membership: int | None
    drafts: Drafts | None = None
    drafted: Int32Column = field(default_factory=lambda: _NONE)


@dataclass(frozen=True)
class _DecodeRows:
    """Slots that decode one token; all columns share an index.

    Attributes:
        slots: on the host.
        computed: on the host: their positions, as if none had ended.
        slot: on the device.
        position: on the device; of ended slots, 0.
        live: on the device.
        index: on the device, 0, 1, 2, ...
    """

    slots: Int64Column
    computed: Int64Column
    slot: torch.Tensor
    position: torch.Tensor
    live: torch.Tensor
    index: torch.Tensor


@dataclass(frozen=True)
class SampledColumns:
    """What the live rows of a step yielded, on the host; the columns share an index."""

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
        device: where the tables live. Memory is touched only as slots use it.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._counts = SlotCounts(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            block_size=block_size,
        )
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._device = device
        # One column more than tokens fit: there ended rows write.
        self._token_table = self._table(max_num_seqs, max_model_len + 1, dtype=torch.int32)
        self._block_table = self._table(max_num_seqs, self._counts.max_blocks, dtype=torch.int32)
        self._position = self._table(max_num_seqs, dtype=torch.int64)
        self._limit = self._table(max_num_seqs, dtype=torch.int64)
        self._done = self._table(max_num_seqs, dtype=torch.bool)
        self._invalid = self._table(max_num_seqs, dtype=torch.bool)
        self._can_draft = np.zeros(max_num_seqs, np.bool_)
        # As wide as the most stop tokens of a sequence; filled up with what is never sampled.
        self._stop_table = torch.full(
            (max_num_seqs, 1), _NO_TOKEN, dtype=torch.int32, device=device
        )
        self._set_decode()

    def _table(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    @property
    def tokens(self) -> torch.Tensor:
        """[slots, max_model_len + 1] int32, the tokens known so far."""
        return self._token_table

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended, as far as the host knows."""
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
        self._append(plan.append_slot, plan.append_index, plan.append_block)
        if plan.decode is not None:
            self._set_decode()

    def _fill_slot(self, admission: Admission) -> None:
        slot, tokens = admission.slot, admission.token_ids
        self._position[slot] = admission.num_computed
        self._limit[slot] = admission.max_total_tokens
        self._done[slot] = False
        # A token that the model does not have ends the one sequence, not the worker.
        valid = (tokens >= 0) & (tokens < self._vocab_size)
        self._invalid[slot] = not valid.all()
        self._can_draft[slot] = admission.sampling.can_draft
        self._token_table[slot, : len(tokens)] = self._upload(np.where(valid, tokens, 0))
        index = np.arange(len(admission.blocks), dtype=np.int32)
        self._append(np.full_like(index, slot), index, admission.blocks)
        stops = admission.sampling.stop_token_ids
        if len(stops) > self._stop_table.shape[1]:
            wider = self._stop_table.new_full((len(self._stop_table), len(stops)), _NO_TOKEN)
            wider[:, : self._stop_table.shape[1]] = self._stop_table
            self._stop_table = wider
        self._stop_table[slot] = _NO_TOKEN
        if stops:
            self._stop_table[slot, : len(stops)] = self._upload(np.array(stops, np.int64))

    def _append(self, slots: Int32Column, index: Int32Column, blocks: Int32Column) -> None:
        if not len(slots):
            return
        columns = self._upload(np.stack((slots, index, blocks)))
        where = columns[:2].long()
        self._block_table[where[0], where[1]] = columns[2]

    def _set_decode(self) -> None:
        self._decode = self._upload(self._counts.decode_slots)
        count = len(self._counts.decode_slots)
        self._decode_cu_seqlens = torch.arange(count + 1, dtype=torch.int32, device=self._device)
        self._decode_index = torch.arange(count, device=self._device)

    # --- state -> batch --------------------------------------------------------------------------

    def next_batch(self, plan: BatchPlan) -> tuple[AttentionBatch, SampledRows]:
        """The rows of the step whose changes were just applied; counts them as computed.

        Raises `PlanError` when the plan computes tokens that are not known or have no block.
        """
        computed = self._counts.advance_decodes()
        drafts, drafted = self._draft(plan) if len(plan.draft_slot) else (None, _NONE)
        live = ~self._done[self._decode]
        position = self._position[self._decode] * live
        self._position[self._decode] += live
        slots, index = self._counts.decode_slots, self._decode_index
        decode = _DecodeRows(slots, computed, self._decode, position, live, index)
        if drafts is None and not len(plan.chunk_slot):
            return self._decode_batch(decode, drafted)
        return self._mixed_batch(self._counts.advance_chunks(plan), decode, drafts, drafted)

    def _draft(self, plan: BatchPlan) -> tuple[Drafts | None, Int32Column]:
        """What is supposed, which becomes part of the token table: beyond what is known, and so
        read by nobody else. And how many tokens that is for each slot that may draft."""
        drafted = np.zeros(len(plan.draft_slot), np.int32)
        supposed = []
        for index, position, most in self._counts.drafting(plan):
            slot = int(plan.draft_slot[index])
            if self._can_draft[slot]:
                known = self._token_table[slot, : position + 1].cpu().numpy()
                supposed.append((index, position, continuation(known, most)))
        chosen, left = [], plan.max_draft_tokens
        for index, position, tokens in sorted(supposed, key=lambda one: -len(one[2])):
            tokens = tokens[:left]
            if not len(tokens) or len(tokens) < plan.min_draft_tokens:
                break
            left -= len(tokens)
            drafted[index] = len(tokens)
            slot, end = int(plan.draft_slot[index]), position + 1 + len(tokens)
            self._token_table[slot, position + 1 : end] = self._upload(tokens)
            chosen.append((slot, position, tokens))
        if not chosen:
            return None, drafted
        slots = np.array([slot for slot, _, _ in chosen])
        positions = np.array([position for _, position, _ in chosen])
        return Drafts(slots, positions, tuple(tokens for _, _, tokens in chosen)), drafted

    def _decode_batch(
        self, decode: _DecodeRows, drafted: Int32Column
    ) -> tuple[AttentionBatch, SampledRows]:
        position, live = decode.position, decode.live
        batch = AttentionBatch(
            token_ids=self._token_table[decode.slot, position].long(),
            positions=position,
            cu_seqlens=self._decode_cu_seqlens,
            seq_lens=(position + 1).int(),
            block_table=self._blocks(decode.slot, self._num_wide(decode.computed), live),
            num_decodes=len(decode.slots),
            sample_index=decode.index,
        )
        rows = SampledRows(
            slots=decode.slots,
            positions=decode.computed + 1,
            slot=decode.slot,
            position=position + 1,
            live=live,
            membership=self._counts.membership,
            drafted=drafted,
        )
        return batch, rows

    def _mixed_batch(
        self,
        chunks: ChunkRows,
        decode: _DecodeRows,
        drafts: Drafts | None,
        drafted: Int32Column,
    ) -> tuple[AttentionBatch, SampledRows]:
        """Decode rows, then chunks, then the rows of slots that have drafted, which are like chunks
        of which every token samples."""
        slots, start, length = chunks.slots, chunks.start, chunks.length
        num_sampled = chunks.samples.astype(np.int64)
        ends = self._upload(np.stack((slots, chunks.end)))
        self._position[ends[0]] = ends[1]
        if drafts is not None:
            decode = self._without(decode, drafts.slots)
            slots = np.concatenate((slots, drafts.slots))
            start = np.concatenate((start, drafts.position))
            length = np.concatenate((length, drafts.length))
            num_sampled = np.concatenate((num_sampled, drafts.length))
        num_decodes, end = len(decode.slots), start + length
        first = np.cumsum(length) - length
        flat = self._upload(np.stack((np.repeat(slots, length), _runs(start, length))))
        columns = self._upload(np.stack((slots, end)))
        unsampled = length - num_sampled
        sampled_slots = np.repeat(slots, num_sampled)
        sampled_positions = _runs(start + unsampled, num_sampled) + 1
        sampled_index = _runs(first + unsampled, num_sampled) + num_decodes
        sampled = self._upload(np.stack((sampled_index, sampled_slots, sampled_positions)))

        positions = torch.cat((decode.position, flat[1]))
        cu_seqlens = np.concatenate((np.arange(num_decodes), first, [length.sum()]))
        cu_seqlens[num_decodes:] += num_decodes
        row_slot = torch.cat((decode.slot, columns[0]))
        row_live = torch.cat((decode.live, torch.ones_like(columns[0], dtype=torch.bool)))
        width = self._num_wide(np.concatenate((decode.computed, end - 1)))
        batch = AttentionBatch(
            token_ids=self._token_table[torch.cat((decode.slot, flat[0])), positions].long(),
            positions=positions,
            cu_seqlens=self._upload(cu_seqlens).int(),
            seq_lens=torch.cat((decode.position + 1, columns[1])).int(),
            block_table=self._blocks(row_slot, width, row_live),
            num_decodes=num_decodes,
            sample_index=torch.cat((decode.index, sampled[0])),
            host_cu_seqlens=tuple(cu_seqlens.tolist()),
            host_seq_lens=tuple((decode.computed + 1).tolist() + end.tolist()),
        )
        rows = SampledRows(
            slots=np.concatenate((decode.slots, sampled_slots)),
            positions=np.concatenate((decode.computed + 1, sampled_positions)),
            slot=torch.cat((decode.slot, sampled[1])),
            position=torch.cat((decode.position + 1, sampled[2])),
            live=torch.cat((decode.live, torch.ones_like(sampled[1], dtype=torch.bool))),
            membership=self._counts.membership if not len(sampled_slots) else None,
            drafts=drafts,
            drafted=drafted,
        )
        return batch, rows

    def _without(self, decode: _DecodeRows, slots: Int64Column) -> _DecodeRows:
        kept = np.flatnonzero(~np.isin(decode.slots, slots))
        row = self._upload(kept)
        return _DecodeRows(
            decode.slots[kept],
            decode.computed[kept],
            decode.slot[row],
            decode.position[row],
            decode.live[row],
            decode.index[: len(kept)],
        )

    def _num_wide(self, positions: Int64Column) -> int:
        """Columns of the block table that rows up to these positions need; at least 1."""
        return int(positions.max(initial=0)) // self._block_size + 1

    def _blocks(self, slot: torch.Tensor, width: int, live: torch.Tensor) -> torch.Tensor:
        return self._block_table[:, :width].index_select(0, slot) * live[:, None]

    # --- tokens -> state -------------------------------------------------------------------------

    def commit(
        self, rows: SampledRows, token_id: torch.Tensor, failed: torch.Tensor
    ) -> SampledColumns:
        """Stores a step's tokens, decides who has ended, and hands the news to the host.

        Args:
            rows: the sampled rows, as `next_batch` gave them.
            token_id: [rows] int64, what was sampled.
            failed: [rows] bool, rows whose logits were not finite.

        The only place of a step where the host waits for the device.
        """
        token = token_id.int()
        stop = (token[:, None] == self._stop_table[rows.slot]).any(dim=1)
        finish = torch.where(rows.position + 1 >= self._limit[rows.slot], FinishReason.LENGTH, 0)
        finish = torch.where(stop, FinishReason.STOP, finish)
        finish = torch.where(failed | self._invalid[rows.slot], FinishReason.ERROR, finish)
        live = rows.live
        if rows.drafts is not None:
            live = self._verify(rows.drafts, live, token, finish)
        target = torch.where(live, rows.position, self._max_model_len)
        self._token_table[rows.slot, target] = token
        self._done[rows.slot[live & (finish > 0)]] = True

        news = torch.stack((live.int(), token, finish.int())).cpu().numpy()
        row = np.flatnonzero(news[0])
        slot = rows.slots[row]
        columns = SampledColumns(
            slot=slot.astype(np.int32),
            generation=self._counts.generation[slot],
            token_id=news[1, row],
            finish=news[2, row].astype(np.uint8),
            row=row,
        )
        self._counts.end(slot, columns.generation, columns.finish)
        if rows.drafts is not None:
            self._advance(rows.drafts.slots, columns)
        return columns

    def _verify(
        self, drafts: Drafts, live: torch.Tensor, token: torch.Tensor, finish: torch.Tensor
    ) -> torch.Tensor:
        """Which rows yield a token: of slots that have drafted, those that what was sampled before
        them bears out."""
        first = len(live) - int(drafts.length.sum())
        kept = drafts.kept(token[first:].cpu().numpy(), finish[first:].cpu().numpy())
        return torch.cat((live[:first], self._upload(np.concatenate(kept))))

    def _advance(self, slots: Int64Column, columns: SampledColumns) -> None:
        """Each of them was counted as one token further; it may have got further than that."""
        num_tokens = np.count_nonzero(slots[:, None] == columns.slot, axis=1)
        self._counts.accept(slots, num_tokens - 1)
        self._position[self._upload(slots)] += self._upload(num_tokens - 1)

    def end(self, vectors: Vectors) -> None:
        """Sequences that have their vector, and so have ended."""
        self._counts.end(vectors.slot, vectors.generation, vectors.finish)

    def _upload(self, column: npt.NDArray[np.integer | np.bool_]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(column)).to(self._device, non_blocking=True)


def _runs(start: Int64Column, length: Int64Column) -> Int64Column:
    """start, start + 1, ... of so many numbers, one run after another."""
    first = np.cumsum(length) - length
    numbers: Int64Column = np.arange(length.sum()) + np.repeat(start - first, length)
    return numbers
