"""What losing workers costs: `python -m bench.suspects`.

A discrete-event simulation, as `bench.simulate`, of streams that all run at once while workers are
killed, or die of poisonous requests: each kills the worker that computes a certain position of it.
The scheduler is the one that serves; workers are modelled. Per scenario it prints how many workers
were lost, how long anybody was suspected, and how long the streams of everyone else stood still.
"""

import argparse
import heapq
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from bench.modelled_worker import ModelledSampling, ModelledWorker, StepCost
from bench.recording import report
from scheduler.core.config import CoreConfig
from scheduler.core.decisions import Outputs, Plan
from scheduler.core.events import Capacity, FinishReason, Request, StepResult
from scheduler.core.scheduler import Scheduler

ROUTER = 1
PLANS_AHEAD = 2
PROMPT_TOKENS = 32
SLOW_S = 2.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Which workers are lost: for poisonous requests, or at these times whatever they compute."""

    name: str
    num_replicas: int
    num_poisons: int = 0
    kills: tuple[tuple[float, str], ...] = ()
    """(seconds, replica)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What came of a scenario."""

    workers_lost: int
    ended_with_error: int
    suspected_s: float
    """From the first moment at which anybody was suspected to the last."""
    done_s: float
    slowed: int
    """Streams that stood still for more than two seconds, of those that no poison was in."""
    pause_p50_s: float
    """The longest of each such stream."""
    pause_max_s: float


class _MortalWorker(ModelledWorker):
    """Dies when a plan computes a position that kills it."""

    def __init__(self, capacity: Capacity, cost: StepCost, fatal: dict[int, int]) -> None:
        super().__init__(capacity, cost)
        self._fatal_of_seed = fatal
        self._fatal: dict[int, int] = {}
        """The position that kills it, by slot."""

    def survives(self, plan: Plan) -> bool:
        """Whether it will; to be asked before the plan is executed."""
        for slot in plan.retire.tolist():
            self._fatal.pop(slot, None)
        for admission in plan.admit:
            if admission.seed in self._fatal_of_seed:
                self._fatal[admission.slot] = self._fatal_of_seed[admission.seed]
        decode = set((self._decode if plan.decode is None else plan.decode).tolist())
        chunks = zip(
            *(c.tolist() for c in (plan.chunk_slot, plan.chunk_start, plan.chunk_length)),
            strict=True,
        )
        computed = {slot: range(start, start + length) for slot, start, length in chunks}
        for slot, position in self._fatal.items():
            if slot in decode and not self._done[slot] and self._num_tokens[slot] - 1 == position:
                return False
            if position in computed.get(slot, ()):
                return False
        return True


@dataclass(slots=True)
class _Link:
    worker: _MortalWorker
    life: int
    free_at: float = 0.0
    dies: bool = False
    results: deque[StepResult] = field(default_factory=deque)
    num_sent: int = 0


@dataclass(slots=True)
class _Stream:
    told_at: float = 0.0
    pause_s: float = 0.0


class Simulation:
    """One scenario."""

    def __init__(self, scenario: Scenario, arguments: argparse.Namespace) -> None:
        self._restart_s: float = arguments.restart
        self._cost = StepCost(arguments.step_fixed, arguments.step_per_token, 0.0)
        self._capacity = Capacity(8192, 16, 256, 2048, 4096)
        self._scheduler = Scheduler(CoreConfig(hash_seed=b"simulation"))
        self._events: list[tuple[float, int, tuple[str, str, int]]] = []
        self._serials = count()
        self._lives = count()
        self._links: dict[str, _Link] = {}
        self._num_lost = 0
        self._suspected: list[float] = []
        self._errors = 0
        self._streams = {i: _Stream() for i in range(arguments.streams)}
        # Spread over the streams, each at a place of its own.
        step = arguments.streams // (scenario.num_poisons + 1)
        poisons = [step * (i + 1) for i in range(scenario.num_poisons)]
        self._fatal = {i: PROMPT_TOKENS + 40 + 5 * n for n, i in enumerate(poisons)}
        for name in "abcdefgh"[: scenario.num_replicas]:
            self._attach(name)
        random = np.random.default_rng(arguments.seed)
        for i in self._streams:
            request = Request(
                router=ROUTER,
                sequence_id=i,
                token_ids=random.integers(0, 32_000, PROMPT_TOKENS).astype(np.int32),
                num_prompt_tokens=PROMPT_TOKENS,
                max_tokens=arguments.tokens,
                seed=i,
                sampling=ModelledSampling(arguments.tokens),
            )
            self._scheduler.accept(request, 0.0)
        for when, name in scenario.kills:
            self._at(when, ("kill", name, 0))

    def run(self) -> Cost:
        """Until every request has ended."""
        now = 0.0
        self._send_plans(now)
        while self._events:
            now, _, (event, name, life) = heapq.heappop(self._events)
            link = self._links.get(name)
            match event:
                case "start":
                    self._attach(name)
                case "kill" if link is not None:
                    self._lose(name, now)
                case "die" if link is not None and link.life == life:
                    self._lose(name, now)
                case "result" if link is not None and link.life == life:
                    link.num_sent -= 1
                    self._hear(self._scheduler.apply(name, link.results.popleft(), now), now)
            self._send_plans(now)
            if self._scheduler.state().num_suspects:
                self._suspected.append(now)
        self._scheduler.check_integrity()
        return self._result(now)

    def _at(self, when: float, event: tuple[str, str, int]) -> None:
        heapq.heappush(self._events, (when, next(self._serials), event))

    def _attach(self, name: str) -> None:
        self._scheduler.attach(name, self._capacity)
        worker = _MortalWorker(self._capacity, self._cost, self._fatal)
        self._links[name] = _Link(worker, next(self._lives))

    def _lose(self, name: str, now: float) -> None:
        self._num_lost += 1
        del self._links[name]
        self._hear(self._scheduler.detach(name, now, blame=True), now)
        self._at(now + self._restart_s, ("start", name, 0))

    def _send_plans(self, now: float) -> None:
        again = True
        while again:
            for name, link in self._links.items():
                while link.num_sent < PLANS_AHEAD:
                    plan = self._scheduler.schedule(name, now)
                    if plan is None:
                        break
                    link.num_sent += 1
                    self._execute(name, link, plan, now)
            again = self._scheduler.take_moved()

    def _execute(self, name: str, link: _Link, plan: Plan, now: float) -> None:
        if link.dies:
            return
        link.dies = not link.worker.survives(plan)
        result, seconds = link.worker.execute(plan)
        link.free_at = max(link.free_at, now) + seconds
        if not link.dies:
            link.results.append(result)
        self._at(link.free_at, ("die" if link.dies else "result", name, link.life))

    def _hear(self, outputs: Outputs, now: float) -> None:
        for sequence_id in outputs.sequence_id.tolist():
            stream = self._streams[sequence_id]
            stream.pause_s = max(stream.pause_s, now - stream.told_at)
            stream.told_at = now
        for finished in outputs.finished:
            is_error = finished.reason is FinishReason.ERROR
            assert is_error <= (finished.sequence_id in self._fatal), "an innocent one ended"
            self._errors += is_error

    def _result(self, now: float) -> Cost:
        pauses = np.array([s.pause_s for i, s in self._streams.items() if i not in self._fatal])
        suspected = self._suspected or [0.0]
        return Cost(
            workers_lost=self._num_lost,
            ended_with_error=self._errors,
            suspected_s=round(suspected[-1] - suspected[0], 2),
            done_s=round(max(s.told_at for s in self._streams.values()), 2),
            slowed=int((pauses > SLOW_S).sum()),
            pause_p50_s=round(float(np.median(pauses)), 2),
            pause_max_s=round(float(pauses.max()), 2),
        )


def scenarios(restart_s: float) -> list[Scenario]:
    """An undisturbed run, two kills in quick succession, and up to three poisonous requests."""
    again = 1.0 + restart_s + 0.2
    return [
        Scenario("undisturbed", 2),
        Scenario("two kills, one replica", 1, kills=((1.0, "a"), (again, "a"))),
        Scenario("two kills, two replicas", 2, kills=((1.0, "a"), (1.1, "b"))),
        *(Scenario(f"poisons: {n}, replicas: {r}", r, n) for r in (1, 2) for n in (1, 2, 3)),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200, help="output tokens of each")
    parser.add_argument("--restart", type=float, default=4.0, help="seconds to start a worker anew")
    # A small model on two CPU cores.
    parser.add_argument("--step-fixed", type=float, default=0.02, help="seconds per step")
    parser.add_argument("--step-per-token", type=float, default=1e-3, help="seconds per token")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, help="also write the figures here")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    found = {s.name: asdict(Simulation(s, arguments).run()) for s in scenarios(arguments.restart)}
    report(found, (), arguments.save)


if __name__ == "__main__":
    main()
