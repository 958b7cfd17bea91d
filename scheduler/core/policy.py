"""In which order sequences are served: a key that is computed once and never changes.

FCFS orders by arrival. Priority with aging says that one step of priority is worth `aging_s`
seconds of waiting: at time t a sequence stands at `priority * aging_s - (t - arrival)`. Everyone
waiting ages at the same rate, so t cancels out of every comparison and what is left,
`arrival + priority * aging_s`, is static: queues never need sorting again, and nobody starves,
since only finitely many later arrivals can overtake.

The serial number breaks ties, which makes the order total and every decision repeatable.
"""

from collections.abc import Callable

from scheduler.core.config import CoreConfig
from scheduler.core.events import Request

Order = tuple[float, int]
"""Smaller is served first; the second part is the sequence's serial number."""

OrderKey = Callable[[Request, float, int], Order]
"""(request, arrival in seconds, serial number) to its place in the order."""


def order_key(config: CoreConfig) -> OrderKey:
    """The key function of `config.policy`."""
    if config.policy == "fcfs":
        return lambda request, arrival, serial: (arrival, serial)
    return lambda request, arrival, serial: (arrival + request.priority * config.aging_s, serial)
