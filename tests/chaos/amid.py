"""Faults that shall come while streams run, where those may be over before the fault is made."""

from collections.abc import Awaitable, Callable

NUM_TRIES = 5


async def in_time(attempt: Callable[[str], Awaitable[bool]], too_late: str) -> None:
    """Makes a fault until it came in time, as the attempt itself tells: a busy machine may delay
    one, but hardly all. Each gets a name of its own, and everything whole.

    Raises AssertionError with the text `too_late` if none did.
    """
    for number in range(NUM_TRIES):
        if await attempt(f"try-{number}"):
            return
    raise AssertionError(f"{too_late}, {NUM_TRIES} times in a row")
