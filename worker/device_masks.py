"""The masks of grammars on a device: what may come next in each slot, kept in step with the tokens.

The host makes them (`worker.constraints`) from tokens that are on the device. So a step some of
whose rows have a grammar is launched up to its forward pass; while that runs, the host reads the
tokens of the step before, makes the masks and launches the sampler behind them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from worker.constraints import Constraints
from worker.lane import Fetched, Lane
from worker.plans import BatchPlan, Int32Column
from worker.slot_counts import Int64Column


@dataclass(frozen=True)
class _Outcome:
    """What a step yields, on its way; slots and generations share an index with its columns."""

    slots: Int64Column
    generation: Int32Column
    fetched: Fetched


class DeviceMasks:
    """The masks by slot.

    Args:
        constraints: what may come next in each slot.
        allowed: the device's table, [slots, words of a mask].
        lane: the device's queue.
    """

    def __init__(self, constraints: Constraints, allowed: torch.Tensor, lane: Lane) -> None:
        self._constraints = constraints
        self._allowed = allowed
        self._lane = lane
        # Steps whose tokens the constraints have not heard of: one, but for a moment.
        self._unheard: list[_Outcome] = []

    def reset(self) -> None:
        """Forgets every sequence."""
        self._constraints.reset()
        self._unheard.clear()

    def apply(self, plan: BatchPlan) -> None:
        """Hears of the sequences that come and go."""
        self._constraints.apply(plan)

    def follow(self, slots: Int64Column, generation: Int32Column, fetched: Fetched) -> None:
        """Keeps an outcome that masks of later steps depend on."""
        constrained = slots[self._constraints.among(slots)]
        if self._constraints.follow_output(constrained):
            self._unheard.append(_Outcome(slots, generation, fetched))

    def refresh(self, slots: Int64Column) -> None:
        """Makes the masks of the slots that sample next those of their newest tokens."""
        constrained = slots[self._constraints.among(slots)]
        if self._constraints.follow_output(constrained):
            for outcome in self._unheard:
                token_id, finish = outcome.fetched.wait()[:2]
                rows = np.flatnonzero(token_id >= 0)
                self._constraints.advance(
                    outcome.slots[rows], outcome.generation[rows], token_id[rows], finish[rows]
                )
            self._unheard.clear()
        constrained = slots[self._constraints.among(slots)]
        changed = self._constraints.refresh(constrained)
        if len(changed):
            rows = np.column_stack((changed, self._constraints.masks[changed]))
            self._lane.upload_rows(rows.astype(np.int32, copy=False), self._set)

    def _set(self, rows: torch.Tensor) -> None:
        self._allowed.index_copy_(0, rows[:, 0].long(), rows[:, 1:])
