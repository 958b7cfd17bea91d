"""Who may draft how much: tokens that a worker supposes, and that cost little if they are wrong.

A step that computes few tokens takes as long as it takes to read the weights; a few tokens more
come almost for nothing. So decoding slots may draft what is left up to that point, after prompts
have had theirs: all of them together so many, and those first of which the worker supposes most.
A row that drafts costs something in itself, and what it wins is a smaller part of a larger step; so
a slot must have more to say than the step computes anyway. As the batch grows nobody drafts.

The worker looks up what it supposes and verifies it; here is decided, for each slot, how much that
may be, from what became of it before:

    all accepted     twice as much next time, up to what a worker takes
    some             as much as was accepted, and one more
    none             half as much, and nothing at all for a while: 2, 4, 8 ... steps, up to 64

Plans are sent ahead of results, so how far a slot has got is not known when they are made: it is
where the calendar has it, or further by as much as plans without a result let it draft. Blocks are
there for the furthest.
"""

from dataclasses import dataclass

from scheduler.core.decode_calendar import DecodeCalendar

_FIRST_LENGTH = 4
_LEAST_LENGTH = 2
_LONGEST_PAUSE = 64
"""Steps."""


@dataclass(slots=True)
class _Record:
    """One decoding slot's."""

    length: int
    """Tokens it may draft."""
    resumes_at: int = 0
    """The step from which on it may."""
    num_misses: int = 0
    """In a row: drafts of which nothing was accepted."""
    num_ahead: int = 0
    """Tokens that plans without a result let it draft."""
    num_reserved: int = 0
    """Positions that there are blocks for, as it might have got so far by drafts."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one step may draft."""

    lengths: list[tuple[int, int]]
    """Slots, and the most that each may."""
    most: int
    """All of them together."""
    least: int
    """Who would draft less drafts nothing."""


class Speculation:
    """The drafts of one replica, by slot.

    Args:
        max_draft_tokens: of one slot in one step, at most; 0: nobody drafts.
        step_tokens: tokens of a step beyond which nothing is drafted.
    """

    def __init__(self, max_draft_tokens: int, step_tokens: int) -> None:
        self._most = max_draft_tokens
        self._step_tokens = step_tokens
        self._records: dict[int, _Record] = {}
        self._ahead: set[int] = set()

    @property
    def is_idle(self) -> bool:
        """Nobody here drafts, or ever has."""
        return not self._records

    def enter(self, slot: int) -> None:
        """The slot decodes from now on, and may draft."""
        if self._most > 0:
            self._records[slot] = _Record(min(_FIRST_LENGTH, self._most))

    def leave(self, slot: int) -> None:
        """It decodes no more; nothing happens if it did not draft."""
        self._records.pop(slot, None)
        self._ahead.discard(slot)

    def num_ahead(self, slot: int) -> int:
        """By how much a slot may be further than the calendar has it."""
        record = self._records.get(slot)
        return 0 if record is None else record.num_ahead

    def num_reserved(self, slot: int) -> int:
        """Positions of a slot that there are blocks for because it might have drafted so far."""
        record = self._records.get(slot)
        return 0 if record is None else record.num_reserved

    @property
    def ahead(self) -> frozenset[int]:
        """Slots that may be further than the calendar has them."""
        return frozenset(self._ahead)

    def allow(self, step: int, num_tokens: int, budget: int) -> Allowance | None:
        """What `step` may draft; None: nothing.

        Args:
            step: which is planned.
            num_tokens: that it computes anyway.
            budget: tokens that are left of it.
        """
        most = min(self._step_tokens - num_tokens, budget)
        least = max(_LEAST_LENGTH, num_tokens + 1)
        if most < least:
            return None
        lengths = [
            (slot, min(max(record.length, least), most, self._most))
            for slot, record in self._records.items()
            if record.resumes_at <= step
        ]
        return Allowance(lengths, most, least) if lengths else None

    def plan(self, slot: int, num_tokens: int) -> None:
        """A plan lets the slot draft so many."""
        self._records[slot].num_ahead += num_tokens
        self._ahead.add(slot)

    def settle(
        self,
        slot: int,
        *,
        planned: int,
        drafted: int,
        accepted: int,
        next_step: int,
        num_reserved: int,
    ) -> None:
        """The result of a plan that let the slot draft `planned` tokens; until it came there were
        to be blocks for `num_reserved` positions."""
        record = self._records[slot]
        record.num_ahead -= planned
        record.num_reserved = max(record.num_reserved, num_reserved)
        if not record.num_ahead:
            self._ahead.discard(slot)
        if accepted:
            record.num_misses = 0
            grown = max(record.length, 2 * drafted) if accepted == drafted else accepted + 1
            record.length = min(grown, self._most)
        elif drafted:
            record.num_misses += 1
            record.length = max(_LEAST_LENGTH, record.length // 2)
            record.resumes_at = next_step + min(1 << record.num_misses, _LONGEST_PAUSE)

    def check_integrity(self, decoding: DecodeCalendar) -> None:
        """Raises AssertionError unless only slots that decode have drafts."""
        assert all(slot in decoding for slot in self._records), "a slot drafts that does not decode"
        ahead = {slot for slot, record in self._records.items() if record.num_ahead}
        assert ahead == self._ahead, "drafts on their way are miscounted"
        assert all(record.num_ahead >= 0 for record in self._records.values()), "and below none"
