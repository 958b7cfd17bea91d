"""How long a replica's steps take: how far to plan ahead of it, and when to give up on a step.

Durations are exponential averages over the last few steps. A deadline is generous, because fencing
a replica that is merely slow costs more than waiting for one that is dead.
"""

import asyncio
from collections.abc import Callable

_KEEP = 0.8  # weight of the past in the averages
_SHORT_STEP_S = 0.003
_DEADLINE_FACTOR = 20.0
_GRACE_S = 1.0


class Pace:
    """What the results of one replica say about its speed."""

    def __init__(self) -> None:
        self.step_s: float | None = None
        self._token_s = 0.0
        # Of tokens and seconds of steps: a line through them tells what a smaller step takes.
        self._tokens = 0.0
        self._token_variance = 0.0
        self._covariance = 0.0

    @property
    def depth(self) -> int:
        """Plans to keep in flight: one executing and one ahead, or two ahead of short steps.

        Never more: a new prompt waits behind every plan that was sent.
        """
        return 3 if self.step_s is not None and self.step_s <= _SHORT_STEP_S else 2

    def observe(self, seconds: float, num_tokens: int) -> None:
        """Learns from a step that took this long for this many tokens."""
        token_s = seconds / max(num_tokens, 1)
        if self.step_s is None:
            self.step_s, self._token_s, self._tokens = seconds, token_s, num_tokens
            return
        more_tokens, more_s = num_tokens - self._tokens, seconds - self.step_s
        learn = 1 - _KEEP
        self._token_variance = _KEEP * (self._token_variance + learn * more_tokens**2)
        self._covariance = _KEEP * (self._covariance + learn * more_tokens * more_s)
        self._tokens += learn * more_tokens
        self.step_s += learn * more_s
        self._token_s += learn * (token_s - self._token_s)

    def expected_s(self, num_tokens: int) -> float:
        """How long a step of this many tokens should take.

        One larger than usual takes longer in proportion at most, which no step beside it can
        prove; one smaller than usual lies on the line through those that were, so that a long
        prompt a moment ago does not excuse a short step that hangs.
        """
        if self.step_s is None:
            return 0.0
        if num_tokens >= self._tokens or not self._token_variance:
            return max(self.step_s, self._token_s * num_tokens)
        slope_s = max(0.0, self._covariance / self._token_variance)
        share = num_tokens / self._tokens
        return max(share * self.step_s, self.step_s - slope_s * (self._tokens - num_tokens))

    def patience_s(self, num_tokens: int, *, floor_s: float) -> float:
        """How long a step of this many tokens may take before its replica is given up."""
        return max(floor_s, _DEADLINE_FACTOR * self.expected_s(num_tokens))


class StepWatch:
    """Calls `on_expiry` when the oldest plan in flight is overdue.

    Steps are not timed one by one: a timer sleeps until the deadline of the plan that was oldest
    when it was armed, then looks again, so that a step costs it nothing. A plan is overdue only
    when it is found so twice, a grace apart: if this very process was stopped for a while, the
    results that wait in its sockets are read before anyone is blamed.
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
        wait_s = deadline - self._clock()
        if wait_s <= 0:
            if self._suspect == step_id:
                self._on_expiry()
                return
            self._suspect = step_id
            wait_s = self._grace_s
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)
