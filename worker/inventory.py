"""What the KV blocks hold, for the next scheduler: names that plans gave them.

A name stands for a whole prefix of tokens, under a secret of the cell that each Welcome tells. The
worker understands neither; it keeps what it is told and gives it back in its hello, so that a
scheduler that starts anew finds the prefixes its predecessor left.
"""

from dataclasses import dataclass

import numpy as np

from worker.plans import BatchPlan, Int32Column, PlanError, Welcome

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


class Inventory:
    """Names of blocks 1 to num_blocks."""

    def __init__(self, num_blocks: int) -> None:
        self._seed = b""
        self._is_named = np.zeros(num_blocks + 1, np.bool_)
        self._name = np.zeros((num_blocks + 1, NAME_BYTES), np.uint8)

    def open(self, welcome: Welcome) -> None:
        """A new epoch; the names hold on if the scheduler says so."""
        if not welcome.keeps_names:
            self._is_named[:] = False
        self._seed = welcome.hash_seed

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

    def _checked(self, block: Int32Column) -> Int32Column:
        if int(block.min()) < 1 or int(block.max()) >= self._is_named.size:
            raise PlanError(f"a plan names a block that is not in 1 to {self._is_named.size - 1}")
        return block

    def held(self) -> Held:
        """What a hello says; not what no scheduler told a secret for."""
        block = np.flatnonzero(self._is_named)[:_MAX_NAMED].astype(np.int32)
        if not self._seed or not block.size:
            return Held()
        return Held(self._seed, block.tobytes(), self._name[block].tobytes())
