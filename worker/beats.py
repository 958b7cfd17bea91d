"""How the executor knows that its transport child's loop turns: a byte a second over a pipe.

A child that is stopped, or busy or blocked for good, beats no more; the executor ends it, and so
both. The limit is far beyond any delay of a loop that turns. Silence is counted in pieces, each of
them waited for in vain: of a time in which this process itself stood still, one piece counts.

Neither side may import torch or grpc from here: both processes use this module.
"""

import asyncio
import contextlib
import os
import select
from collections.abc import Callable

BEAT_S = 1.0
SILENCE_S = 30.0
"""After which a child that has beaten before is taken for lost."""

_READ_BYTES = 4096


async def beat(fd: int) -> None:
    """Writes to `fd`, which it owns from now on, until nobody reads there any more."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb", buffering=0) as beats:
        while True:
            beats.write(b"\0")  # nothing, where a reader that stands still has left it full
            await asyncio.sleep(BEAT_S)


def listen(fd: int, on_silence: Callable[[], None], limit_s: float) -> None:
    """Reads the beats at `fd`, which it owns from now on, until there are none.

    Args:
        fd: the reading end.
        on_silence: called, once, when no beat has come for `limit_s` after an earlier one; a child
            that has not beaten yet is still starting.
        limit_s: more than a few times `BEAT_S`.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    num_silent, has_begun = 0, False
    with os.fdopen(fd, "rb", buffering=0) as beats:
        while num_silent * BEAT_S < limit_s:
            if not poll.poll(BEAT_S * 1e3):
                num_silent += has_begun
            elif beats.read(_READ_BYTES):
                num_silent, has_begun = 0, True
            else:
                return  # it has gone
    on_silence()
