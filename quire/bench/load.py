"""Sends random prompts to a server at a given rate and notes when each piece of answer arrives.

Prompts are token ids drawn from a range that every vocabulary has and that no special token is in,
so a run needs no tokenizer and asks the same of every model. Without `--seed` a run draws its own,
or the second run would find the first one's prompts in the prefix cache.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quire.errors import RequestFailed
from quire.http import Endpoint

TOKEN_IDS = range(1000, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send."""

    model: str
    num_prompts: int
    input_len: int
    """Tokens per prompt."""
    shared_len: int = 0
    """Tokens that all prompts begin with; `input_len` counts them."""
    output_len: int
    """Tokens per answer, whatever the model would have said."""
    seed: int
    request_rate: float | None = None
    """Requests per second, arriving at random (Poisson); None: all at once."""
    max_concurrency: int | None = None
    """Requests in flight, at most; None: no limit."""
    num_warmups: int = 1
    """Requests sent, and waited for, before the clock starts."""


@dataclass(slots=True)
class Trace:
    """One request; times are seconds on the monotonic clock."""

    sent_at: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """When each piece with text came."""
    ended_at: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A load and what came of it."""

    load: Load
    traces: list[Trace]
    duration_s: float
    max_in_flight: int
    """The most requests that were in flight together."""


async def run_load(endpoint: Endpoint, load: Load, advance: Callable[[int], None]) -> Run:
    """Sends it all; `advance` is called with each answer's number of tokens."""
    dice = random.Random(load.seed)
    shared = dice.choices(TOKEN_IDS, k=load.shared_len)
    prompts = [
        shared + dice.choices(TOKEN_IDS, k=load.input_len - load.shared_len)
        for _ in range(load.num_prompts + load.num_warmups)
    ]
    for prompt in prompts[load.num_prompts :]:
        warm = await _ask(endpoint, load, prompt)
        if warm.error:
            raise RequestFailed(f"the warm-up request failed: {warm.error}")
    return await _Sender(endpoint, load, advance).send(prompts[: load.num_prompts], dice)


class _Sender:
    """Starts requests when they are due, and counts those in flight."""

    def __init__(self, endpoint: Endpoint, load: Load, advance: Callable[[int], None]) -> None:
        self._endpoint = endpoint
        self._load = load
        self._advance = advance
        self._gate = asyncio.Semaphore(load.max_concurrency or load.num_prompts)
        self._in_flight = 0
        self._max_in_flight = 0

    async def send(self, prompts: list[list[int]], dice: random.Random) -> Run:
        started_at = time.monotonic()
        due = started_at
        tasks = []
        for prompt in prompts:
            if self._load.request_rate:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += dice.expovariate(self._load.request_rate)
            tasks.append(asyncio.create_task(self._one(prompt)))
        traces = await asyncio.gather(*tasks)
        duration_s = time.monotonic() - started_at
        return Run(self._load, list(traces), duration_s, self._max_in_flight)

    async def _one(self, prompt: list[int]) -> Trace:
        async with self._gate:
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            try:
                trace = await _ask(self._endpoint, self._load, prompt)
            finally:
                self._in_flight -= 1
        self._advance(trace.num_output_tokens)
        return trace


async def _ask(endpoint: Endpoint, load: Load, prompt: list[int]) -> Trace:
    """One request; an error is noted, not raised."""
    payload: dict[str, Any] = {
        "model": load.model,
        "prompt": prompt,
        "max_tokens": load.output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    trace = Trace(sent_at=time.monotonic())
    try:
        async with contextlib.aclosing(endpoint.events("/v1/completions", payload)) as events:
            async for event in events:
                if any(choice.get("text") for choice in event["choices"]):
                    trace.arrivals.append(time.monotonic())
                if usage := event.get("usage"):
                    trace.num_prompt_tokens = usage["prompt_tokens"]
                    trace.num_output_tokens = usage["completion_tokens"]
    except RequestFailed as error:
        trace.error = str(error)
    trace.ended_at = time.monotonic()
    return trace
