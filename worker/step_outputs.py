"""What the rows of a step yield on a device: sampled there, and sent for."""

from collections.abc import Sequence

import numpy as np
import torch

from kernels import sampling
from kernels.ops import DeviceStepOps
from worker.device_tables import DeviceTables
from worker.lane import Fetched, Lane
from worker.plans import Admission
from worker.slot_counts import Int64Column


class StepOutputs:
    """Samples, commits the tokens to the tables, and fetches them with whatever was asked beside.

    Args:
        tables: the device's.
        lane: its queue.
        step_ops: has the sampler.
        max_num_seqs: slots, the null slot not counted.
    """

    def __init__(
        self, tables: DeviceTables, lane: Lane, step_ops: DeviceStepOps, max_num_seqs: int
    ) -> None:
        self._tables = tables
        self._lane = lane
        self._ops = step_ops
        device = tables.arena.device
        self._token = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._finish = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._wants_logprobs = np.zeros(max_num_seqs, np.bool_)
        self._num_logprobs = np.zeros(max_num_seqs, np.int64)

    def admit(self, admission: Admission) -> None:
        """Notes what a sequence asks for."""
        num_logprobs = admission.sampling.num_logprobs
        self._wants_logprobs[admission.slot] = num_logprobs is not None
        self._num_logprobs[admission.slot] = num_logprobs or 0

    def logprob_rows(self, slots: Int64Column) -> Int64Column:
        """Which of the rows that sample these slots asked for log-probabilities."""
        return np.flatnonzero(self._wants_logprobs[slots])

    def num_top(self, slots: Int64Column) -> Int64Column:
        """Alternatives that each of `logprob_rows` asked for."""
        return self._num_logprobs[slots][self._wants_logprobs[slots]]

    def sample(self, logits: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """Draws a token for each row and commits it; gives the tokens.

        Args:
            logits: [rows, vocab_size].
            slot: whose each row is, [rows].
        """
        tables, num_rows = self._tables, slot.shape[0]
        self._ops.sample_and_commit(
            logits,
            slot,
            tables.inputs.new_position[:num_rows],
            tables.sampling,
            tables.slots,
            self._token[:num_rows],
            self._finish[:num_rows],
            grammar=tables.masks,
        )
        return self._token[:num_rows]

    def fetch(
        self, logits: torch.Tensor, slots: Int64Column, extra: Sequence[torch.Tensor] = ()
    ) -> Fetched:
        """Tokens and finishes; then what is `extra`; then logprobs, if a row asked for them."""
        count = len(slots)
        outcome = [self._token[:count], self._finish[:count], *extra]
        asks = self._wants_logprobs[slots]
        if asks.any():
            row = self._tables.logprob_row[: int(asks.sum())].long()
            values = sampling.token_logprobs(
                logits[row].float(),
                self._token[row].long().clamp(min=0),
                int(self._num_logprobs[slots].max()),
            )
            outcome += [values.logprob, values.rank, values.top_token_id, values.top_logprob]
        return self._lane.fetch(outcome)
