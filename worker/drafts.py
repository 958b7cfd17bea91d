"""Tokens that are supposed to follow: prompt lookup, and what becomes of them.

Where the newest tokens of a sequence came before, what came after them may come again. So a row
computes the newest token and, behind it, those that are supposed; each position is sampled as it
would have been alone. The first supposed token that was not sampled, and what is behind it, counts
for nothing:

    computed    t0   d1   d2   d3          t0 the newest token, d1 to d3 supposed
    sampled     s1   s2   s3   s4          s1 = d1, s2 = d2, s3 differs from d3
    yielded     s1   s2   s3

What is supposed follows from the tokens alone, so every rank supposes the same. The more of the
newest tokens agree, the more is supposed: one chance agreement costs little.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from worker.plans import Int32Column, UInt8Column
from worker.slot_counts import BoolColumn, Int64Column

_LEAST_AGREEING, _MOST_AGREEING = 2, 16


def continuation(tokens: Int32Column, most: int) -> Int32Column:
    """What is supposed to follow: at most `most` tokens, none if the newest never came before.

    Of the places where the most of the newest tokens came before it is the latest; what came after
    it up to now is taken to come again and again. No more tokens than agree.
    """
    if len(tokens) <= _LEAST_AGREEING:
        return tokens[:0]
    # The last tokens of the places: the newest one itself is none.
    place = np.flatnonzero((tokens[1:-1] == tokens[-1]) & (tokens[:-2] == tokens[-2])) + 1
    if not place.size:
        return tokens[:0]
    back = np.arange(min(_MOST_AGREEING, len(tokens) - 1))
    earlier = place[:, None] - back
    agrees = (tokens[earlier] == tokens[-1 - back]) & (earlier >= 0)
    num_agreeing = np.logical_and.accumulate(agrees, axis=1).sum(axis=1)
    longest = int(num_agreeing.max())
    after = tokens[place[num_agreeing == longest][-1] + 1 :]
    return after.take(np.arange(min(most, longest)), mode="wrap")


@dataclass(frozen=True)
class Drafts:
    """What a step supposes; the columns share an index.

    Attributes:
        slots: whose tokens.
        position: of each slot's newest token, whose row the supposed ones follow.
        tokens: what is supposed, at least one each.
    """

    slots: Int64Column
    position: Int64Column
    tokens: tuple[Int32Column, ...]

    @cached_property
    def length(self) -> Int64Column:
        """Tokens that each row computes."""
        return np.array([1 + len(tokens) for tokens in self.tokens], np.int64)

    def kept(self, sampled: Int32Column, finish: UInt8Column) -> list[BoolColumn]:
        """Which rows count, by slot: each follows from those before it, and none of those ended.

        Args:
            sampled: tokens of all rows of `slots`, one slot after another.
            finish: not 0 where that token ends its sequence.
        """
        found, first = [], 0
        for tokens in self.tokens:
            rows = slice(first, first + len(tokens))
            goes_on = (sampled[rows] == tokens) & (finish[rows] == 0)
            found.append(np.concatenate(([True], np.logical_and.accumulate(goes_on))))
            first += len(tokens) + 1
        return found
