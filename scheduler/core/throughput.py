"""How fast the cell works, and so how long what is queued will take.

Averages fade with a half-life of their own time: of steps by the seconds that they took, so that an
idle hour changes nothing; of outputs by their number.
"""

_HALF_LIFE_S = 10.0
_KEEP_OUTPUT = 0.95

UNKNOWN_WAIT_S = 5.0
"""What a request is told to wait while no step has been measured."""
LEAST_WAIT_S, MOST_WAIT_S = 1.0, 600.0


class Throughput:
    """Tokens per second of one replica, prompts' and outputs' alike."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step has computed so many tokens in this time."""
        keep = 0.5 ** (seconds / _HALF_LIFE_S)
        self._tokens = keep * self._tokens + num_tokens
        self._seconds = keep * self._seconds + seconds

    @property
    def tokens_per_s(self) -> float:
        """0 while nothing has been measured."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0


class OutputLength:
    """How many tokens an output has, as the latest that came to their own end say."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._weight = 0.0

    def observe(self, num_tokens: int) -> None:
        """An output is complete."""
        self._weight = _KEEP_OUTPUT * self._weight + 1.0
        self.mean += (num_tokens - self.mean) / self._weight


def wait_s(num_tokens: float, tokens_per_s: float) -> float:
    """How long a backlog takes; within limits that a client can make use of."""
    if tokens_per_s <= 0:
        return UNKNOWN_WAIT_S
    return min(max(num_tokens / tokens_per_s, LEAST_WAIT_S), MOST_WAIT_S)
