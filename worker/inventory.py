"""What the KV blocks hold, for the next scheduler: names that plans gave them.

A name stands for a whole prefix of tokens, under a secret of the cell that each Welcome tells. The
worker understands neither; it keeps what it is told and gives it back in its hello, so that a
scheduler that starts anew finds the prefixes its predecessor left.

What a sequence has computed is trusted no more once a row of it was not finite. The scheduler says
so in its next plan (`unnamed`); one that is gone before it does must not leave the names behind, so
they are forgotten here, too, and the sequence's blocks get none until it has left its slot.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from worker.plans import BatchPlan, FinishReason, Int32Column, PlanError, StepResult, Welcome

NAME_BYTES = 16
_MAX_NAMED = 1_000_000


@dataclass(frozen=True, slots=True)
class Held:
    """The named blocks at one moment."""

    hash_seed: bytes = b""
    block: bytes = b""
    """int32 column."""
    name: bytes = b""
    """`NAME_BYTES` each."""


@dataclass(slots=True)
class _Occupant:
    """The sequence that a slot has, or had last."""

    generation: int
    blocks: list[int]
    has_left: bool = False


class Inventory:
    """Names of blocks 1 to num_blocks. One thread owns it; `hear` may be called from any."""

    def __init__(self, num_blocks: int) -> None:
        self._seed = b""
        self._is_named = np.zeros(num_blocks + 1, np.bool_)
        self._name = np.zeros((num_blocks + 1, NAME_BYTES), np.uint8)
        self._occupants: dict[int, _Occupant] = {}
        """By slot."""
        self._doubts: deque[tuple[int, int]] = deque()
        """Slots and generations of rows that were not finite, still to be looked at."""
        self._doubted: list[_Occupant] = []
        """Those of them that have their slots."""

    def open(self, welcome: Welcome) -> None:
        """A new epoch; the names hold on if the scheduler says so."""
        self._settle()
        if not welcome.keeps_names:
            self._is_named[:] = False
        self._seed = welcome.hash_seed
        self._occupants.clear()
        self._doubted.clear()

    def note(self, plan: BatchPlan) -> None:
        """A plan was launched. Raises PlanError if it names a block that does not exist."""
        if len(plan.block_name) != NAME_BYTES * plan.named.size:
            raise PlanError(f"{plan.named.size} blocks have {len(plan.block_name)} bytes of names")
        for column in (plan.append_block, plan.unnamed):
            if column.size:
                self._is_named[self._checked(column)] = False
        if plan.named.size:
            block = self._checked(plan.named)
            self._is_named[block] = True
            self._name[block] = np.frombuffer(plan.block_name, np.uint8).reshape(-1, NAME_BYTES)
        self._follow(plan)
        self._settle()

    def hear(self, result: StepResult) -> None:
        """What a step of this epoch made; perhaps before its plan is noted."""
        for rows in (result, result.vectors):
            if rows is not None and rows.finish.any():
                failed = rows.finish == FinishReason.ERROR
                slots, generations = rows.slot[failed], rows.generation[failed]
                self._doubts.extend(zip(slots.tolist(), generations.tolist(), strict=True))

    def _follow(self, plan: BatchPlan) -> None:
        """Who has which blocks."""
        for slot in plan.retire.tolist():
            if (occupant := self._occupants.get(slot)) is not None:
                occupant.has_left = True
        for admission in plan.admit:
            if admission.blocks.size:
                self._checked(admission.blocks)
            occupant = _Occupant(admission.generation, admission.blocks.tolist())
            self._occupants[admission.slot] = occupant
        for slot, block in zip(plan.append_slot.tolist(), plan.append_block.tolist(), strict=True):
            if (occupant := self._occupants.get(slot)) is not None:
                occupant.blocks.append(block)

    def _settle(self) -> None:
        """Forgets what is doubted by now."""
        while self._doubts:
            slot, generation = self._doubts.popleft()
            occupant = self._occupants.get(slot)
            if occupant is None or occupant.generation != generation:
                self._is_named[:] = False  # nobody knows which blocks it had
            else:
                self._doubted.append(occupant)
        for occupant in self._doubted:
            self._is_named[occupant.blocks] = False
        self._doubted = [occupant for occupant in self._doubted if not occupant.has_left]

    def _checked(self, block: Int32Column) -> Int32Column:
        if int(block.min()) < 1 or int(block.max()) >= self._is_named.size:
            raise PlanError(f"a plan names a block that is not in 1 to {self._is_named.size - 1}")
        return block

    def held(self) -> Held:
        """What a hello says, once all that was launched has been heard of; not what no scheduler
        told a secret for."""
        self._settle()
        block = np.flatnonzero(self._is_named)[:_MAX_NAMED].astype(np.int32)
        if not self._seed or not block.size:
            return Held()
        return Held(self._seed, block.tobytes(), self._name[block].tobytes())
