"""A stack of two replicas and two routers, how a load went there in peace, and how it goes when
something happens."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.checker import check_ended
from tests.chaos.pauses import Figures, pauses
from tests.chaos.stack import Stack, running
from tests.chaos.streams import History, Load, told
from tests.chaos.traffic import STOPPING, Asked, mixed, with_stops

STEP_TIMEOUT_S = 8.0
DRAIN_TIMEOUT_S = 300.0
"""A router that ends waits for its last stream, however slow a busy machine is."""
MEASURED_TOKENS = 900
"""Of the prompt that tells how fast prompts are computed."""
NEWCOMERS = 5
"""Of so many requests one is asked again in the middle of the fault: no kind is left out."""


@dataclass(frozen=True)
class Scale:
    """How much is asked at once."""

    num_streams: int
    max_tokens: int


@dataclass
class Scene:
    """A stack in peace, and what it answered then."""

    stack: Stack
    reference: list[History]
    scale: Scale
    prefill_tokens_per_s: float
    """Of one replica."""
    num_runs: int = 0

    def asked(self) -> list[Asked]:
        """The same as in the reference; nothing that any cache holds from before helps."""
        self.num_runs += 1
        return [history.asked.salted(f"run-{self.num_runs}") for history in self.reference]

    async def disturbed(
        self, fault: Callable[[], Awaitable[None]], *, after: float = 0.35
    ) -> tuple[list[History], float]:
        """The same requests, with a fault when this share of the tokens is there, and some of them
        once more right after it; and when it began."""
        load = Load(self.stack.url, self.asked())
        await load.until(after, self.reference)
        began_at = time.monotonic()
        await fault()
        newcomers = Load(self.stack.url, self.asked()[::NEWCOMERS])
        return [*await load.ended(), *await newcomers.ended()], began_at

    def quarter(self) -> "Scene":
        """One of four of its streams."""
        return replace(self, reference=self.reference[::4])

    async def computed_again(self, pid: int) -> dict[str, float]:
        """What is lost with this process, which has a device, and how long its likes take to
        compute it once more."""
        num_tokens = await self.stack.tokens_held(pid)
        return {
            "tokens to compute again": num_tokens,
            "which takes, s": num_tokens / self.prefill_tokens_per_s,
        }

    @property
    def expected(self) -> list[History]:
        """What `disturbed` should be."""
        return [*self.reference, *self.reference[::NEWCOMERS]]


@contextmanager
def set_up(scale: Scale, runtime_dir: Path, figures: Figures) -> Iterator[Scene]:
    """A scene, for as long as it lasts."""
    flags = ("--replicas", "2", "--router-processes", "2", "--step-timeout", str(STEP_TIMEOUT_S))
    drains = ("--drain-timeout", str(DRAIN_TIMEOUT_S))
    stays = ("--hang-timeout", "0")  # what tests stop they let go on
    with running("smollm2", runtime_dir, *flags, *drains, *stays) as stack:
        reference, seconds = asyncio.run(_in_peace(stack, scale))
        num_tokens = sum(history.num_tokens for history in reference)
        speed = asyncio.run(_prefill_tokens_per_s(stack))
        peace = pauses(reference, 0) | {"tokens": num_tokens, "seconds": seconds}
        peace["prompt tokens of one replica, 1/s"] = speed
        figures.add(f"in peace, {scale.num_streams} streams", peace)
        yield Scene(stack, reference, scale, speed)


async def _in_peace(stack: Stack, scale: Scale) -> tuple[list[History], float]:
    asked = mixed(scale.num_streams, scale.max_tokens)
    scouts = [one for one in asked if one.kind in STOPPING]
    texts = {
        history.asked.body["seed"]: history.choices[0].text
        for history in await told(stack.url, scouts)
    }
    began_at = time.monotonic()
    asked = with_stops(asked, lambda one: texts[one.body["seed"]])
    reference = await told(stack.url, asked)
    for history in reference:
        check_ended(history)
    return reference, time.monotonic() - began_at


async def _prefill_tokens_per_s(stack: Stack) -> float:
    [asked] = mixed(1, 1)
    prompt = list(range(1000, 1000 + MEASURED_TOKENS))
    long = Asked("long", asked.path, asked.body | {"prompt": prompt})
    [history] = await told(stack.url, [long])
    check_ended(history)
    assert history.ended_at is not None
    return MEASURED_TOKENS / (history.ended_at - history.began_at)
