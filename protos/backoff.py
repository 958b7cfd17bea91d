"""When to dial a scheduler again that is not there."""

import itertools
import random
from collections.abc import Iterator

FIRST_S = 0.1
EAGER_S = 0.25
NUM_EAGER = 60
"""Dials at that pace: a scheduler that is started again is back within seconds, and every stream
waits for it meanwhile."""
LAST_S = 2.0


def backoff() -> Iterator[float]:
    """Seconds before each next dial: short for a while, then doubling to a limit; spread, so that
    those who lost it together do not come back together."""
    delay_s = FIRST_S
    for num_dials in itertools.count(1):
        yield delay_s * random.uniform(0.5, 1.0)
        delay_s = min(2 * delay_s, EAGER_S if num_dials < NUM_EAGER else LAST_S)
