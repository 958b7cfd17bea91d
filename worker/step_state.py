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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kernels.batch import AttentionBatch
from worker.plans import Admission, BatchPlan, FinishReason, Int32Column, UInt8Column, Vectors
from worker.slot_counts import ChunkRows, Int64Column, SlotCounts

_NONE = np.empty(0, np.int32)
_NO_TOKEN = -1


@dataclass(frozen=True)
class SampledRows:
    """The rows of a step that sample, decode rows first; all columns share an index.

    Attributes:
        slots: on the host.
        positions: on the host: the index the new token takes, if the slot had not ended.
        slot: [rows] int64, on the device.
        position: [rows] int64, on the device: the index the new token takes; of ended slots, 1.
        live: [rows] bool, on the device: false for slots that have ended.
        membership: changes whenever `slots` may differ from the step before; None when the rows are
            of this step alone.
    """

    slots: Int64Column
    positions: Int64Column
    slot: torch.Tensor
    position: torch.Tensor
    live: torch.Tensor
    membership: int | None


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
        live = ~self._done[self._decode]
        position = self._position[self._decode] * live
        self._position[self._decode] += live
        if not len(plan.chunk_slot):
            return self._decode_batch(computed, position, live)
        return self._mixed_batch(self._counts.advance_chunks(plan), computed, position, live)

    def _decode_batch(
        self, computed: Int64Column, position: torch.Tensor, live: torch.Tensor
    ) -> tuple[AttentionBatch, SampledRows]:
        batch = AttentionBatch(
            token_ids=self._token_table[self._decode, position].long(),
            positions=position,
            cu_seqlens=self._decode_cu_seqlens,
            seq_lens=(position + 1).int(),
            block_table=self._blocks(self._decode, self._num_wide(computed), live),
            num_decodes=len(computed),
            sample_index=self._decode_index,
        )
        rows = SampledRows(
            slots=self._counts.decode_slots,
            positions=computed + 1,
            slot=self._decode,
            position=position + 1,
            live=live,
            membership=self._counts.membership,
        )
        return batch, rows

    def _mixed_batch(
        self, chunks: ChunkRows, computed: Int64Column, position: torch.Tensor, live: torch.Tensor
    ) -> tuple[AttentionBatch, SampledRows]:
        slots, start, length, end = chunks.slots, chunks.start, chunks.length, chunks.end
        first = np.cumsum(length) - length
        offset = np.arange(length.sum()) - np.repeat(first, length)
        flat = self._upload(np.stack((np.repeat(slots, length), np.repeat(start, length) + offset)))
        last = np.flatnonzero(chunks.samples)
        columns = self._upload(np.stack((slots, end)))
        sampled = self._upload(np.stack((first + length - 1 + len(computed), slots, end))[:, last])
        self._position[columns[0]] = columns[1]

        positions = torch.cat((position, flat[1]))
        cu_seqlens = np.concatenate((np.arange(len(computed)), first, [length.sum()]))
        cu_seqlens[len(computed) :] += len(computed)
        row_slot = torch.cat((self._decode, columns[0]))
        row_live = torch.cat((live, torch.ones_like(columns[0], dtype=torch.bool)))
        width = self._num_wide(np.concatenate((computed, end - 1)))
        batch = AttentionBatch(
            token_ids=self._token_table[torch.cat((self._decode, flat[0])), positions].long(),
            positions=positions,
            cu_seqlens=self._upload(cu_seqlens).int(),
            seq_lens=torch.cat((position + 1, columns[1])).int(),
            block_table=self._blocks(row_slot, width, row_live),
            num_decodes=len(computed),
            sample_index=torch.cat((self._decode_index, sampled[0])),
            host_cu_seqlens=tuple(cu_seqlens.tolist()),
            host_seq_lens=tuple((computed + 1).tolist() + end.tolist()),
        )
        rows = SampledRows(
            slots=np.concatenate((self._counts.decode_slots, slots[last])),
            positions=np.concatenate((computed + 1, end[last])),
            slot=torch.cat((self._decode, sampled[1])),
            position=torch.cat((position + 1, sampled[2])),
            live=torch.cat((live, torch.ones_like(sampled[1], dtype=torch.bool))),
            membership=self._counts.membership if not len(last) else None,
        )
        return batch, rows

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
        target = torch.where(rows.live, rows.position, self._max_model_len)
        self._token_table[rows.slot, target] = token
        self._done[rows.slot] |= finish > 0

        news = torch.stack((rows.live.int(), token, finish.int())).cpu().numpy()
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
        return columns

    def end(self, vectors: Vectors) -> None:
        """Sequences that have their vector, and so have ended."""
        self._counts.end(vectors.slot, vectors.generation, vectors.finish)

    def _upload(self, column: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(column)).to(self._device, non_blocking=True)
