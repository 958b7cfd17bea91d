"""The plans that one replica was sent and has not answered, oldest first, and what waits for them.

A plan counts as sent from the moment it is made. What each of them samples is noted when it is, so
that a result can be held against it; what sequences leave behind is kept in limbo, and what their
slots were is told with the next plan.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from scheduler.core.events import Int32Column, WrongResult
from scheduler.core.limbo import Limbo, Remains
from scheduler.core.throughput import Throughput

_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Sent:
    """A plan on its way."""

    step: int
    tokens: Int32Column
    """Slots that get a token."""
    vectors: Int32Column
    """Slots that get a vector."""
    draft_slot: Int32Column
    """Slots that may draft, and so may get more tokens than one."""
    draft_length: Int32Column
    """How many tokens each of them may draft."""
    max_draft_tokens: int
    """How many all of them together may."""
    num_tokens: int
    """Without drafts."""
    at: float


class InFlight:
    """One replica's plans without a result."""

    def __init__(self, replica: str) -> None:
        self.next_step = 1
        self.limbo = Limbo()
        self.throughput = Throughput()
        self._replica = replica
        self._plans: deque[Sent] = deque()
        self._decoding = _NONE
        self._retiring: list[int] = []
        self._last_result_at = 0.0

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def oldest(self) -> int:
        """The step whose result comes next; there must be one."""
        return self._plans[0].step

    def send(
        self,
        decoding: Int32Column | None,
        first: Int32Column | None,
        vectors: Int32Column,
        drafts: tuple[Int32Column, Int32Column, int],
        num_tokens: int,
        now: float,
    ) -> tuple[int, Int32Column]:
        """The next step's number, and the slots it retires. It samples for the slots that decode
        (None: those of the step before), for those that get their `first` token in it, if any,
        and completes the prompts of those that want `vectors`; `drafts` are slots that may draft,
        how much each, and how much together."""
        step = self.next_step
        self.next_step += 1
        if decoding is not None:
            self._decoding = decoding
        tokens = self._decoding if first is None else np.append(self._decoding, first)
        self._plans.append(Sent(step, tokens, vectors, *drafts, num_tokens, now))
        retire = np.array(self._retiring, np.int32) if self._retiring else _NONE
        self._retiring.clear()
        return step, retire

    def settle(self, step: int, num_accepted: int, now: float) -> Sent:
        """The result of the oldest plan came, with so many tokens that were drafted. Returns that
        plan. Raises WrongResult if it is not the oldest's."""
        if not self._plans or self._plans[0].step != step:
            expected = f"step {self._plans[0].step}" if self._plans else "none"
            raise WrongResult(f"result of step {step} of {self._replica} came; expected {expected}")
        plan = self._plans.popleft()
        seconds = now - max(plan.at, self._last_result_at)
        self.throughput.observe(plan.num_tokens + num_accepted, seconds)
        self._last_result_at = now
        return plan

    def leave(self, remains: Remains) -> bool:
        """A sequence has left its slot, which the next plan retires. Tells whether what remains of
        it is in limbo; otherwise no plan can touch it, and it is free at once."""
        self._retiring.append(remains.slot)
        if self._plans:
            self.limbo.put(remains)
        return len(self._plans) > 0
