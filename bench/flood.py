"""Tenants that flood, and one that asks one thing at a time: `python -m bench.flood`.

Modelled time, as in `bench.simulate`; the scheduler is the very one that serves. Tenant A always
has many requests in flight; B sends one, waits for its end, thinks, and sends the next. Printed are
B's times to first token beside those of B alone, and Jain's index (1: exactly even) of what tenants
with requests of different shapes are served while all of them have more to do.
"""

import argparse
from collections import deque
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from bench.modelled_worker import ModelledSampling, ModelledWorker, StepCost
from bench.recording import Target, report
from scheduler.core.config import CoreConfig
from scheduler.core.events import Capacity, Request, StepResult
from scheduler.core.scheduler import Scheduler

PLANS_AHEAD = 2
HALF_TRIP_S = 1.5e-4
OUTPUT_WEIGHT = 2.0
"""Of the core's configuration: an output token costs so many prompt tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a tenant's requests are like, in tokens."""

    prompt: int
    output: int


class Replica:
    """One modelled replica of an 8B model, and what its tenants see."""

    def __init__(self, num_slots: int, budget: int, num_blocks: int) -> None:
        capacity = Capacity(num_blocks, 16, num_slots, budget, 1 << 16)
        self._scheduler = Scheduler(
            CoreConfig(hash_seed=b"flood", max_num_seqs=num_slots, max_num_batched_tokens=budget)
        )
        self._scheduler.attach("r", capacity)
        self._worker = ModelledWorker(capacity, StepCost(5e-3, 2e-5, 4e-8))
        self._random = np.random.default_rng(1)
        self._results: deque[tuple[float, StepResult]] = deque()
        self._free_at = 0.0
        self._requests: dict[int, tuple[str, Shape]] = {}
        self.now = 0.0
        self.first_token_s: dict[int, float] = {}
        self.cost: dict[str, float] = {}
        """By tenant, of what was computed."""
        self._floods: set[str] = set()

    @property
    def num_preemptions(self) -> int:
        return self._scheduler.state().num_preemptions

    def flood(self, tenant: str, shape: Shape, count: int) -> None:
        """From now on the tenant has so many requests in flight."""
        self._floods.add(tenant)
        for _ in range(count):
            self.submit(tenant, shape)

    def submit(self, tenant: str, shape: Shape) -> int:
        """A request whose prompt nobody else has; returns its id."""
        sequence_id = len(self._requests) + 1
        self._requests[sequence_id] = (tenant, shape)
        tokens = self._random.integers(0, 32_000, shape.prompt).astype(np.int32)
        request = Request(
            router=1,
            sequence_id=sequence_id,
            token_ids=tokens,
            num_prompt_tokens=shape.prompt,
            max_tokens=shape.output,
            seed=sequence_id,
            sampling=ModelledSampling(1 << 30),
            tenant=tenant,
        )
        self._scheduler.accept(request, self.now)
        return sequence_id

    def advance(self, until: float = inf) -> list[int]:
        """To the next result, or to this time if it comes first; returns who has ended."""
        while len(self._results) < PLANS_AHEAD:
            plan = self._scheduler.schedule("r", self.now)
            if plan is None:
                break
            result, seconds = self._worker.execute(plan)
            self._free_at = max(self._free_at, self.now + HALF_TRIP_S) + seconds
            self._results.append((self._free_at + HALF_TRIP_S, result))
        if not self._results or self._results[0][0] > until:
            self.now = until
            return []
        self.now, result = self._results.popleft()
        outputs = self._scheduler.apply("r", result, self.now)
        for sequence_id in outputs.sequence_id.tolist():
            tenant, shape = self._requests[sequence_id]
            is_first = sequence_id not in self.first_token_s
            self.first_token_s.setdefault(sequence_id, self.now)
            cost = OUTPUT_WEIGHT + (shape.prompt if is_first else 0)
            self.cost[tenant] = self.cost.get(tenant, 0.0) + cost
        for end in outputs.finished:
            tenant, shape = self._requests[end.sequence_id]
            if tenant in self._floods:
                self.submit(tenant, shape)
        return [end.sequence_id for end in outputs.finished]


def one_at_a_time(replica: Replica, shape: Shape, count: int, think_s: float) -> list[float]:
    """B's times to first token."""
    seconds = []
    for _ in range(count):
        when = replica.now + think_s
        while replica.now < when:
            replica.advance(when)
        submitted_at, request = replica.now, replica.submit("B", shape)
        while request not in replica.advance():
            pass
        seconds.append(replica.first_token_s[request] - submitted_at)
    return seconds


def jain(shares: list[float]) -> float:
    """Jain's index: 1 if all are equal, 1 / n if one has everything."""
    values = np.array(shares)
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))


def evenness(replica: Replica, shapes: dict[str, Shape], seconds: float, backlog: int) -> float:
    """Jain's index of what tenants are served who all have more to do all the time."""
    for name, shape in shapes.items():
        replica.flood(name, shape, backlog)
    while replica.now < seconds:
        replica.advance(seconds)
    return jain([replica.cost.get(name, 0.0) for name in shapes])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flood", type=int, default=200, help="A's requests in flight")
    parser.add_argument("--requests", type=int, default=20, help="B's, one at a time")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of every prompt")
    parser.add_argument("--output", type=int, default=200, help="tokens of every output")
    parser.add_argument("--think", type=float, default=0.2, help="seconds between B's requests")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--num-blocks", type=int, default=6000)
    parser.add_argument("--save", type=Path, help="also write the figures here")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    shape = Shape(arguments.prompt, arguments.output)

    def replica() -> Replica:
        return Replica(
            arguments.max_num_seqs, arguments.max_num_batched_tokens, arguments.num_blocks
        )

    alone = one_at_a_time(replica(), shape, arguments.requests, arguments.think)
    flooded = replica()
    flooded.flood("A", shape, arguments.flood)
    beside = one_at_a_time(flooded, shape, arguments.requests, arguments.think)
    shapes = {
        "long prompts": Shape(4000, 50),
        "long outputs": Shape(50, 800),
        "small": Shape(100, 50),
        "as B": shape,
    }
    index = evenness(replica(), shapes, seconds=60.0, backlog=100)
    ratio = float(np.median(beside) / np.median(alone))
    figures = {
        "first_token_alone_p50_s": round(float(np.median(alone)), 4),
        "first_token_beside_p50_s": round(float(np.median(beside)), 4),
        "first_token_beside_max_s": round(max(beside), 4),
        "ratio_p50": round(ratio, 2),
        "num_preemptions": flooded.num_preemptions,
        "simulated_s": round(flooded.now, 1),
        "jain": round(index, 4),
    }
    targets = [
        Target("B's time to first token, times that alone", ratio, 3.0),
        Target("Jain's index", index, 0.95, at_least=True),
    ]
    report(figures, targets, arguments.save)


if __name__ == "__main__":
    main()
