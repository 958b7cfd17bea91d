"""What a client says about a beam search, and how wide it may be."""

from dataclasses import dataclass
from typing import Literal

from gateway.errors import invalid
from gateway.limits import RequestLimits
from gateway.ranges import check_known_range
from protos.limits import MAX_LOGPROBS


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamOptions:
    """A search for the likeliest answers, in place of drawing one."""

    width: int
    """Beams that run, and answers that are compared."""
    length_penalty: float = 1.0
    """An answer's logprob is divided by its length to this power."""
    early_stopping: bool | Literal["never"] = False
    """True: it is over once `width` answers have ended. False: once the best running beam is behind
    them as it is. "never": once it is behind them whatever may follow."""

    def num_candidates(self, num_ends: int) -> int:
        """Continuations of a beam to look at: enough for `width` beams that do not end."""
        return max(2, 1 + num_ends) * self.width


def check_beams(beams: BeamOptions, num_ends: int, limits: RequestLimits) -> None:
    """Raises RequestError unless a step of the search has as many logprobs as it looks at.

    `num_ends` are the tokens that end an answer.
    """
    check_known_range("length_penalty", beams.length_penalty, limits)
    most = MAX_LOGPROBS // BeamOptions(width=1).num_candidates(num_ends)
    if beams.width > most:
        raise invalid(
            "use_beam_search",
            f"use_beam_search is true and there are {beams.width} beams (n, or best_of); "
            f"with {num_ends} tokens that end an answer there can be at most {most}",
        )
