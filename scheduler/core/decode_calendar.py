"""Which decoding slots need attention at which step, known in advance.

Every slot of the decode set advances by exactly one position per plan. So a slot's position is its
step plus a constant, and two things follow that make the decode path free of per-sequence work.
(Where drafted tokens are accepted the constant grows, and the slot is entered anew.)

- it enters a new block at every step of one residue modulo the block size: a ring of buckets;
- it reaches its limit at one known step: a calendar of departures.

A step touches only its own bucket (one slot in `block_size`) and its own departures.
"""

import numpy as np

from scheduler.core.events import Int32Column


class DecodeCalendar:
    """The decode set of one replica, by slot."""

    def __init__(self, num_slots: int, block_size: int) -> None:
        self._block_size = block_size
        self._decoding = np.zeros(num_slots, np.bool_)
        self._offset = [0] * num_slots
        self._last_step = [0] * num_slots
        self._crossing: list[set[int]] = [set() for _ in range(block_size)]
        self._departing: dict[int, set[int]] = {}
        self._num_decoding = 0
        self._changed = True

    def __len__(self) -> int:
        return self._num_decoding

    def __contains__(self, slot: int) -> bool:
        return bool(self._decoding[slot])

    def position(self, slot: int, step: int) -> int:
        """The position that a decoding slot computes in `step`."""
        return step + self._offset[slot]

    def enter(self, slot: int, *, step: int, position: int, last_position: int) -> None:
        """From `step` on the slot decodes, first `position`, at last `last_position`."""
        offset = position - step
        self._offset[slot] = offset
        self._last_step[slot] = last_position - offset
        self._decoding[slot] = True
        self._num_decoding += 1
        self._changed = True
        self._crossing[-offset % self._block_size].add(slot)
        self._departing.setdefault(last_position - offset + 1, set()).add(slot)

    def advance(self, slot: int, num_positions: int) -> None:
        """A decoding slot is further by so many positions, at every step; not beyond its last."""
        last_position = self._last_step[slot] + self._offset[slot]
        self._strike(slot)
        self._offset[slot] += num_positions
        self._last_step[slot] = last_position - self._offset[slot]
        self._crossing[-self._offset[slot] % self._block_size].add(slot)
        self._departing.setdefault(self._last_step[slot] + 1, set()).add(slot)

    def leave(self, slot: int) -> None:
        """The slot decodes no more; nothing happens if it did not."""
        if not self._decoding[slot]:
            return
        self._decoding[slot] = False
        self._num_decoding -= 1
        self._changed = True
        self._strike(slot)

    def _strike(self, slot: int) -> None:
        """Out of its bucket and its departure."""
        self._crossing[-self._offset[slot] % self._block_size].discard(slot)
        departure = self._last_step[slot] + 1
        departing = self._departing[departure]
        departing.discard(slot)
        if not departing:
            del self._departing[departure]

    def departing(self, step: int) -> tuple[int, ...]:
        """Slots whose last position was computed in the step before."""
        return tuple(sorted(self._departing.get(step, ())))

    def crossing(self, step: int) -> list[int]:
        """Slots that write the first position of a new block in `step`, in slot order."""
        return sorted(self._crossing[step % self._block_size])

    def take_change(self) -> Int32Column | None:
        """The decode set in slot order, or None if it is the one taken last time."""
        if not self._changed:
            return None
        self._changed = False
        return np.flatnonzero(self._decoding).astype(np.int32)

    def check_integrity(self) -> None:
        """Raises AssertionError unless each decoding slot is in its bucket and its departure."""
        decoding = {int(slot) for slot in np.flatnonzero(self._decoding)}
        assert len(decoding) == self._num_decoding, "the decode set is miscounted"
        buckets = [(slot, residue) for residue, b in enumerate(self._crossing) for slot in b]
        assert sorted(slot for slot, _ in buckets) == sorted(decoding), "crossings are wrong"
        for slot, residue in buckets:
            assert (residue + self._offset[slot]) % self._block_size == 0, "a crossing is misplaced"
        departures = {slot: step for step, slots in self._departing.items() for slot in slots}
        assert departures == {s: self._last_step[s] + 1 for s in decoding}, "departures are wrong"
