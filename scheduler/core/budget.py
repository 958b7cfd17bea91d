"""What one step may still spend.

Each limit is a term: a new kind of limit (adapters, encoder tokens) is one more field here, and the
loop that asks `fits` does not change.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class StepBudget:
    """What is left, in units of each term."""

    tokens: int
    slots: int
    blocks: int
    """Free and cached ones."""

    def fits(self, *, tokens: int, slots: int, blocks: int) -> bool:
        """Whether all of it can be had."""
        return tokens <= self.tokens and slots <= self.slots and blocks <= self.blocks

    def spend(self, *, tokens: int = 0, slots: int = 0, blocks: int = 0) -> None:
        """Take it; never more than is left."""
        assert self.fits(tokens=tokens, slots=slots, blocks=blocks), (
            "the step's budget is overdrawn"
        )
        self.tokens -= tokens
        self.slots -= slots
        self.blocks -= blocks
