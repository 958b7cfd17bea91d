"""From the hidden states of a prompt to its vector.

A prompt may come in several chunks. The last token's state is at hand when its chunk is; a mean
needs all of them, so a running sum is kept for each slot. It starts at the first position: nothing
of a prompt that is averaged may come from the prefix cache.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from worker.lane import Lane
from worker.plans import (
    Admission,
    BatchPlan,
    FinishReason,
    Int32Column,
    PlanError,
    Pooling,
    Vectors,
)
from worker.sentences import SentencePooling
from worker.slot_counts import BoolColumn, Int64Column


@dataclass(frozen=True)
class PooledRows:
    """The prompts that a step completed; all share an index.

    Attributes:
        slot: on the host.
        generation: on the host.
        is_valid: on the host: every token is the model's.
        value: [rows, hidden_size] float32, on the device.
    """

    slot: Int32Column
    generation: Int32Column
    is_valid: BoolColumn
    value: torch.Tensor

    def vectors(self, value: npt.NDArray[np.float32]) -> Vectors:
        """With the values on the host."""
        whole = self.is_valid & np.isfinite(value).all(axis=1)
        finish = np.where(whole, FinishReason.STOP, FinishReason.ERROR).astype(np.uint8)
        return Vectors(self.slot, self.generation, finish, value)


class Pooler:
    """Who wants a vector, by slot, and what has been summed up for them.

    Args:
        how: the model's pooling.
        max_num_seqs: slots.
        hidden_size: width of a state, and so of a vector.
        vocab_size: token ids are 0 to vocab_size - 1.
        device: where the states are.
        lane: of a device that must not be waited for; None: columns are brought there directly.
    """

    def __init__(
        self,
        how: SentencePooling,
        *,
        max_num_seqs: int,
        hidden_size: int,
        vocab_size: int,
        device: torch.device,
        lane: Lane | None = None,
    ) -> None:
        self._how = how
        self._lane = lane
        self._vocab_size = vocab_size
        self._device = device
        self._wants = np.zeros(max_num_seqs, np.bool_)
        self._is_valid = np.zeros(max_num_seqs, np.bool_)
        self._num_tokens: Int64Column = np.zeros(max_num_seqs, np.int64)
        self._generation: Int32Column = np.zeros(max_num_seqs, np.int32)
        averages = how.pooling is Pooling.MEAN
        self._sums = torch.zeros(max_num_seqs if averages else 0, hidden_size, device=device)

    def admit(self, admission: Admission) -> None:
        """A slot's new sequence. Raises `PlanError` where the start of a mean is missing."""
        slot, tokens = admission.slot, admission.token_ids
        self._wants[slot] = admission.wants_vector
        if not admission.wants_vector:
            return
        self._num_tokens[slot] = len(tokens)
        self._generation[slot] = admission.generation
        self._is_valid[slot] = ((tokens >= 0) & (tokens < self._vocab_size)).all()
        if self._how.pooling is Pooling.MEAN:
            if admission.num_computed:
                raise PlanError(
                    f"slot {slot} wants the mean of its prompt, "
                    f"{admission.num_computed} tokens of which were computed before"
                )
            self._sums[slot] = 0

    def wants(self, plan: BatchPlan) -> bool:
        """Whether a chunk of the plan is of a prompt that wants its vector."""
        return bool(len(plan.chunk_slot)) and bool(self._wants[plan.chunk_slot].any())

    def pool(self, plan: BatchPlan, hidden: torch.Tensor) -> PooledRows | None:
        """Takes in the chunks of a step; None if none of them completes a prompt.

        Args:
            plan: the step's.
            hidden: [num_tokens, hidden_size], the step's rows after the last norm: decode rows
                first, then the chunks in plan order.
        """
        length = plan.chunk_length.astype(np.int64)
        first = np.cumsum(length) - length + (hidden.shape[0] - int(length.sum()))
        chunk = np.flatnonzero(self._wants[plan.chunk_slot])
        slot = plan.chunk_slot[chunk].astype(np.int64)
        first, length = first[chunk], length[chunk]
        if self._how.pooling is Pooling.MEAN:
            self._add(hidden, slot, first, length)
        last = plan.chunk_start[chunk] + length == self._num_tokens[slot]
        if not last.any():
            return None
        done = slot[last]
        value = self._of(hidden, done, first[last], length[last])
        if self._how.normalizes:
            value = torch.nn.functional.normalize(value, dim=1)
        return PooledRows(
            done.astype(np.int32), self._generation[done], self._is_valid[done], value
        )

    def _add(
        self, hidden: torch.Tensor, slot: Int64Column, first: Int64Column, length: Int64Column
    ) -> None:
        """Chunk by chunk: no copy of the states is made, and a sum has one order."""
        for owner, begin, count in zip(slot.tolist(), first.tolist(), length.tolist(), strict=True):
            self._sums[owner] += hidden[begin : begin + count].sum(0, dtype=torch.float32)

    def _of(
        self, hidden: torch.Tensor, slot: Int64Column, first: Int64Column, length: Int64Column
    ) -> torch.Tensor:
        match self._how.pooling:
            case Pooling.LAST:
                return hidden[self._upload(first + length - 1)].float()
            case Pooling.CLS:
                return hidden[self._upload(first)].float()
            case Pooling.MEAN:
                count = self._upload(self._num_tokens[slot])
                return self._sums[self._upload(slot)] / count[:, None]

    def _upload(self, column: Int64Column) -> torch.Tensor:
        if self._lane is None:
            return torch.from_numpy(np.ascontiguousarray(column)).to(self._device)
        pieces: list[torch.Tensor] = []
        rows = column.astype(np.int32)[:, None]
        self._lane.upload_rows(rows, lambda piece: pieces.append(piece[:, 0].long()))
        return torch.cat(pieces)
