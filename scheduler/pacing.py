"""How long a replica's steps take: how far to plan ahead of it, and when to give up on a step.

Durations are exponential averages over the last few steps, of steps of about the same size: a token
of a long prompt costs a tenth of one that is decoded. A deadline is generous, because fencing a
replica that is merely slow costs more than waiting for one that is dead: a minute, unless told
otherwise, before enough is known of what steps of a size take, and seconds from then on.
"""

import asyncio
from collections.abc import Callable

_KEEP = 0.8  # weight of the past in the averages
_SHORT_STEP_S = 0.003
_LONG_STEP_S = 0.06
_LEAD_S = 0.04
"""Before a long step ends the next one's plan should be there; on a machine that is busy itself
everybody may have to wait for a core that long."""
_DEADLINE_FACTOR = 20.0
_LONG_STEP_FACTOR = 4.0
_GRACE_S = 1.0
_NUM_MEASURED = 8
"""Steps, at least as large, after which it is known how long one takes."""
_MEASURED_FLOOR_S = 5.0
"""No step is given up before, however quick those were: the machine may be busy."""


class Pace:
    """What the results of one replica say about its speed."""

    def __init__(self) -> None:
        self.step_s: float | None = None
        self._seconds: dict[int, float] = {}
        """Of steps by size, the number of bits of their number of tokens."""
        self._num_seen: dict[int, int] = {}
        """How many there were of each size."""

    @property
    def depth(self) -> int:
        """Plans to keep in flight: one executing and one ahead, or two ahead of short steps.

        Never more: a new prompt waits behind every plan that was sent.
        """
        return 3 if self.step_s is not None and self.step_s <= _SHORT_STEP_S else 2

    def hold_s(self, num_tokens: int) -> float:
        """How long a step of this many tokens should execute before plans go ahead of it. A short
        one leaves no time for that; during a long one much may come that need not wait for two.
        Of a size that was not seen yet nothing is known."""
        expected = self._seconds.get(num_tokens.bit_length(), 0.0)
        return expected - _LEAD_S if expected >= _LONG_STEP_S else 0.0

    def observe(self, seconds: float, num_tokens: int) -> None:
        """Learns from a step that took this long for this many tokens."""
        size = num_tokens.bit_length()
        self.step_s = _average(self.step_s, seconds)
        self._seconds[size] = _average(self._seconds.get(size), seconds)
        self._num_seen[size] = self._num_seen.get(size, 0) + 1

    def expected_s(self, num_tokens: int) -> float:
        """How long a step of this many tokens should take; 0 before the first. Where none of its
        size was seen, it is no longer than a larger one, or longer in proportion to a smaller."""
        size = num_tokens.bit_length()
        as_large = [seen for seen in self._seconds if seen >= size]
        if as_large:
            return self._seconds[min(as_large)]
        largest = max(self._seconds, default=size)
        return self._seconds.get(largest, 0.0) * 2.0 ** (size - largest)

    def patience_s(self, num_tokens: int, *, floor_s: float, prepares: bool = False) -> float:
        """How long a step of this many tokens may take before its replica is given up: many times
        longer than expected if it is short, a few times if that is long already.

        Args:
            num_tokens: that it computes.
            floor_s: the least, while too little is known of such steps.
            prepares: it does more than compute them, which steps of its size say nothing of.
        """
        expected = self.expected_s(num_tokens)
        longest = _LONG_STEP_FACTOR * expected + floor_s
        is_measured = self._num_as_large(num_tokens) >= _NUM_MEASURED and not prepares
        least = min(_MEASURED_FLOOR_S, floor_s) if is_measured else floor_s
        return max(least, min(_DEADLINE_FACTOR * expected, longest))

    def _num_as_large(self, num_tokens: int) -> int:
        """How many steps were of this size or a larger one."""
        size = num_tokens.bit_length()
        return sum(count for seen, count in self._num_seen.items() if seen >= size)


def _average(before: float | None, now: float) -> float:
    return now if before is None else _KEEP * before + (1 - _KEEP) * now


class StepWatch:
    """Calls `on_expiry` when the oldest plan in flight is overdue.

    Steps are not timed one by one: a timer sleeps until the deadline of the plan that was oldest
    when it was armed, and no longer than the least that any may have, then looks again, so that a
    step costs it nothing. A plan is overdue only when it is found so twice, a grace apart: if this
    very process was stopped for a while, the results that wait in its sockets are read before
    anyone is blamed.
    """

    def __init__(
        self,
        oldest: Callable[[], tuple[int, float] | None],
        on_expiry: Callable[[], None],
        *,
        clock: Callable[[], float],
        floor_s: float,
    ) -> None:
        """`oldest` tells the step id and the deadline of the oldest plan in flight, if any."""
        self._oldest = oldest
        self._on_expiry = on_expiry
        self._clock = clock
        self._grace_s = min(_GRACE_S, floor_s / 2)
        self._longest_sleep_s = min(_MEASURED_FLOOR_S, floor_s)
        self._timer: asyncio.TimerHandle | None = None
        self._suspect: int | None = None

    def arm(self) -> None:
        """To be called after a plan was sent."""
        if self._timer is None:
            self._look()

    def stop(self) -> None:
        """Nothing is watched any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        oldest = self._oldest()
        if oldest is None:
            return
        step_id, deadline = oldest
        wait_s = min(deadline - self._clock(), self._longest_sleep_s)
        if wait_s <= 0:
            if self._suspect == step_id:
                self._on_expiry()
                return
            self._suspect = step_id
            wait_s = self._grace_s
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)
