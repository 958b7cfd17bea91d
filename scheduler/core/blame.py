"""What a sequence is blamed for: the lost workers whose plans in flight computed it.

A worker that is lost may have been lost for any sequence that those plans computed, so each of
them is blamed. Two things clear it. One is its own progress: a token confirmed well beyond where it
was when the worker was lost, since computing the same again would have done the same harm. The
other is a culprit: who is found explains every loss that it had a part in.

The progress asked for doubles with every loss outside of a trial, so a request under which workers
keep dying is in the end computed alone as a whole.
"""

from dataclasses import dataclass

CLEARING_TOKENS = 8
"""After its first loss a sequence is cleared by progress of so many tokens."""


@dataclass(slots=True, eq=False)
class Loss:
    """A worker that was lost while plans of it were in flight."""

    number: int
    """Newer ones have greater numbers."""
    in_trial: bool
    """Nobody but suspects was aboard."""
    num_suspects: int = 0
    """Requests that are suspected since then."""
    is_explained: bool = False
    """A culprit was aboard."""


@dataclass(slots=True, eq=False)
class Blame:
    """One sequence's."""

    losses: tuple[Loss, ...] = ()
    """Oldest first, without those that were explained before the newest one."""
    num_cleared: int = 0
    """How many of them, from the oldest on, progress has cleared it of."""
    cleared_at: int = 0
    """Known tokens at which the newest of them was not its doing."""

    @property
    def unexplained(self) -> list[Loss]:
        """Losses that may be its doing."""
        return [past for past in self.losses[self.num_cleared :] if not past.is_explained]

    def note(self, loss: Loss, num_known: int, num_reached: int) -> None:
        """A worker was lost while its plans computed the first `num_reached` positions. What is
        known of a sequence that runs elsewhere by now is a little old, which does it no harm."""
        if num_known >= self.cleared_at:
            self.clear()
        cleared = [past for past in self.losses[: self.num_cleared] if not past.is_explained]
        past = (*cleared, *self.unexplained)
        self.losses = (*past, loss)
        self.num_cleared = len(cleared)
        num_before = sum(not before.in_trial for before in past)
        margin = CLEARING_TOKENS << min(num_before, 32)
        self.cleared_at = max(num_known + 1, num_reached + margin)

    def clear(self) -> None:
        """It has made progress enough."""
        self.num_cleared = len(self.losses)

    def is_suspicious(self, max_losses: int) -> bool:
        """Nothing has cleared it of so many losses, or of one in a trial."""
        unexplained = self.unexplained
        return len(unexplained) >= max_losses or any(past.in_trial for past in unexplained)

    def explain(self) -> None:
        """It is the culprit: what it may have done was its doing."""
        for loss in self.unexplained:
            loss.is_explained = True
