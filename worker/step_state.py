"""The worker's mirror: what each slot is, kept on the device and changed by plans.

A plan says what changes and names slots; values stay here. Sampled tokens, positions and ends never
leave the device to feed the next step:

    token_table[slot, position]     tokens known so far
    block_table[slot, index]        KV blocks
    position[slot]                  tokens whose KV exists = the next decode row's position
    done[slot]                      ended on the device; masked until retired

The host keeps a second set of counts as if no slot ever ended. They follow from the plans alone,
so knowing which chunk is a sequence's last, or how wide the block table must be, needs no word from
the device, and a plan that contradicts them is caught before it corrupts anything.

The mirror is disposable: `reset` forgets everything, and the scheduler admits anew.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kernels.batch import AttentionBatch
from worker.plans import (
    Admission,
    BatchPlan,
    FinishReason,
    Int32Column,
    PlanError,
    UInt8Column,
)

Int64Column = npt.NDArray[np.int64]
BoolColumn = npt.NDArray[np.bool_]

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
        self._max_model_len = max_model_len
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._device = device
        self._max_blocks = -(-max_model_len // block_size)
        # One column more than tokens fit: there ended rows write.
        self._token_table = self._table(max_num_seqs, max_model_len + 1, dtype=torch.int32)
        self._block_table = self._table(max_num_seqs, self._max_blocks, dtype=torch.int32)
        self._position = self._table(max_num_seqs, dtype=torch.int64)
        self._limit = self._table(max_num_seqs, dtype=torch.int64)
        self._done = self._table(max_num_seqs, dtype=torch.bool)
        self._invalid = self._table(max_num_seqs, dtype=torch.bool)
        # As wide as the most stop tokens of a sequence; filled up with what is never sampled.
        self._stop_table = torch.full(
            (max_num_seqs, 1), _NO_TOKEN, dtype=torch.int32, device=device
        )
        # The host's counts.
        self._admitted: BoolColumn = np.zeros(max_num_seqs, np.bool_)
        self._ended: BoolColumn = np.zeros(max_num_seqs, np.bool_)
        self._generation: Int32Column = np.zeros(max_num_seqs, np.int32)
        self._num_computed: Int64Column = np.zeros(max_num_seqs, np.int64)
        self._num_known: Int64Column = np.zeros(max_num_seqs, np.int64)
        self._num_allocated: Int64Column = np.zeros(max_num_seqs, np.int64)
        self._max_total: Int64Column = np.zeros(max_num_seqs, np.int64)
        self._membership = 0
        self._set_decode(_NONE)

    def _table(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended, as far as the host knows."""
        return int(np.count_nonzero(self._admitted & ~self._ended))

    def reset(self) -> None:
        """Forgets every sequence."""
        self._admitted[:] = False
        self._ended[:] = False
        self._membership += 1
        self._set_decode(_NONE)

    # --- plan -> state ---------------------------------------------------------------------------

    def apply(self, plan: BatchPlan) -> None:
        """Changes the mirror by a plan: retire, admit, block appends, decode set.

        Raises `PlanError` when the plan contradicts the mirror; the mirror is then unusable until
        the next `reset`.
        """
        if len(plan.retire):
            self._retire(plan.retire)
        for admission in plan.admit:
            self._admit(admission)
        if len(plan.append_slot):
            self._append(plan.append_slot, plan.append_index, plan.append_block)
        if plan.decode is not None:
            self._set_decode(plan.decode)
        if len(plan.retire) or plan.admit or plan.decode is not None:
            self._membership += 1
            self._check_admitted("decode_slot", self._decode_slots)

    def _retire(self, slots: Int32Column) -> None:
        self._check_admitted("retire_slot", slots)
        self._admitted[slots] = False
        self._ended[slots] = False

    def _admit(self, admission: Admission) -> None:
        slot, num_tokens = admission.slot, len(admission.token_ids)
        if not 0 <= slot < len(self._admitted) or self._admitted[slot]:
            raise PlanError(f"slot {slot} is admitted, but it is not free")
        if not 0 <= admission.num_computed < num_tokens < admission.max_total_tokens:
            raise PlanError(
                f"slot {slot} is admitted with {num_tokens} tokens, {admission.num_computed} of "
                f"them computed, and room for {admission.max_total_tokens}"
            )
        if admission.max_total_tokens > self._max_model_len:
            raise PlanError(
                f"slot {slot} is admitted with max_total_tokens {admission.max_total_tokens}; "
                f"this worker holds at most {self._max_model_len}"
            )
        self._admitted[slot] = True
        self._ended[slot] = False
        self._generation[slot] = admission.generation
        self._num_computed[slot] = admission.num_computed
        self._num_known[slot] = num_tokens
        self._num_allocated[slot] = 0
        self._max_total[slot] = admission.max_total_tokens
        self._position[slot] = admission.num_computed
        self._limit[slot] = admission.max_total_tokens
        self._done[slot] = False
        self._fill_slot(admission)

    def _fill_slot(self, admission: Admission) -> None:
        slot, tokens = admission.slot, admission.token_ids
        # A token that the model does not have ends the one sequence, not the worker.
        valid = (tokens >= 0) & (tokens < self._vocab_size)
        self._invalid[slot] = not valid.all()
        self._token_table[slot, : len(tokens)] = self._upload(np.where(valid, tokens, 0))
        index = np.arange(len(admission.blocks), dtype=np.int32)
        self._append(np.full_like(index, slot), index, admission.blocks)
        stops = admission.sampling.stop_token_ids
        if len(stops) > self._stop_table.shape[1]:
            wider = self._stop_table.new_full((len(self._admitted), len(stops)), _NO_TOKEN)
            wider[:, : self._stop_table.shape[1]] = self._stop_table
            self._stop_table = wider
        self._stop_table[slot] = _NO_TOKEN
        if stops:
            self._stop_table[slot, : len(stops)] = self._upload(np.array(stops, np.int64))

    def _append(self, slots: Int32Column, index: Int32Column, blocks: Int32Column) -> None:
        if not len(slots):
            return
        self._check_admitted("append_slot", slots)
        if index.min() < 0 or index.max() >= self._max_blocks:
            raise PlanError(f"a block is appended beyond the {self._max_blocks} a sequence may use")
        if blocks.min() < 1 or blocks.max() > self._num_blocks:
            raise PlanError(f"a block is appended whose id is not 1 to {self._num_blocks}")
        np.maximum.at(self._num_allocated, slots, index + 1)
        columns = self._upload(np.stack((slots, index, blocks)))
        where = columns[:2].long()
        self._block_table[where[0], where[1]] = columns[2]

    def _set_decode(self, slots: Int32Column) -> None:
        self._decode_slots: Int64Column = slots.astype(np.int64)
        self._decode = self._upload(self._decode_slots)
        count = len(slots)
        self._decode_cu_seqlens = torch.arange(count + 1, dtype=torch.int32, device=self._device)
        self._decode_index = torch.arange(count, device=self._device)

    def _check_admitted(self, column: str, slots: npt.NDArray[np.integer]) -> None:
        if not len(slots):
            return
        if slots.min() < 0 or slots.max() >= len(self._admitted) or not self._admitted[slots].all():
            raise PlanError(f"{column} names a slot that holds no sequence")

    # --- state -> batch --------------------------------------------------------------------------

    def next_batch(self, plan: BatchPlan) -> tuple[AttentionBatch, SampledRows]:
        """The rows of the step whose changes were just applied; counts them as computed.

        Raises `PlanError` when the plan computes tokens that are not known or have no block.
        """
        decode = self._decode_slots
        computed = self._num_computed[decode]
        self._check_decode(decode, computed)
        live = ~self._done[self._decode]
        position = self._position[self._decode] * live
        self._num_computed[decode] += 1
        self._num_known[decode] += 1
        self._position[self._decode] += live
        if not len(plan.chunk_slot):
            return self._decode_batch(computed, position, live)
        return self._mixed_batch(plan, computed, position, live)

    def _check_decode(self, slots: Int64Column, computed: Int64Column) -> None:
        if (computed != self._num_known[slots] - 1).any():
            raise PlanError("a slot decodes before its prompt is computed")
        if (computed >= self._num_allocated[slots] * self._block_size).any():
            raise PlanError("a slot decodes at a position that has no block")
        if (computed + 1 >= self._max_total[slots]).any():
            raise PlanError("a slot decodes beyond max_total_tokens")

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
            slots=self._decode_slots,
            positions=computed + 1,
            slot=self._decode,
            position=position + 1,
            live=live,
            membership=self._membership,
        )
        return batch, rows

    def _mixed_batch(
        self, plan: BatchPlan, computed: Int64Column, position: torch.Tensor, live: torch.Tensor
    ) -> tuple[AttentionBatch, SampledRows]:
        slots = plan.chunk_slot.astype(np.int64)
        start, length = plan.chunk_start.astype(np.int64), plan.chunk_length.astype(np.int64)
        end = start + length
        self._check_chunks(slots, start, end)
        samples = end == self._num_known[slots]
        self._num_computed[slots] = end
        self._num_known[slots] += samples

        first = np.cumsum(length) - length
        offset = np.arange(length.sum()) - np.repeat(first, length)
        flat = self._upload(np.stack((np.repeat(slots, length), np.repeat(start, length) + offset)))
        last = np.flatnonzero(samples)
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
            slots=np.concatenate((self._decode_slots, slots[last])),
            positions=np.concatenate((computed + 1, end[last])),
            slot=torch.cat((self._decode, sampled[1])),
            position=torch.cat((position + 1, sampled[2])),
            live=torch.cat((live, torch.ones_like(sampled[1], dtype=torch.bool))),
            membership=self._membership if not len(last) else None,
        )
        return batch, rows

    def _check_chunks(self, slots: Int64Column, start: Int64Column, end: Int64Column) -> None:
        self._check_admitted("chunk_slot", slots)
        if (start != self._num_computed[slots]).any() or (end <= start).any():
            raise PlanError("a chunk does not start where its sequence's computed tokens end")
        if (end > self._num_known[slots]).any():
            raise PlanError("a chunk reaches beyond its sequence's known tokens")
        if (end > self._num_allocated[slots] * self._block_size).any():
            raise PlanError("a chunk covers positions that have no block")

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
            generation=self._generation[slot],
            token_id=news[1, row],
            finish=news[2, row].astype(np.uint8),
            row=row,
        )
        self._ended[slot] = columns.finish > 0
        return columns

    def _upload(self, column: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(column)).to(self._device, non_blocking=True)
