"""The scheduling core at scale, without a model: `python -m bench.simulate --requests 100000`.

A discrete-event simulation: time jumps from one event to the next, workers are modelled (seconds
per step = fixed + tokens + context), and the scheduler is the very one that serves. It prints what
only scale shows: how much of the prompts the prefix index finds, how much KV memory is wasted, how
long requests queue, and what a step costs the core.
"""

import argparse
import gc
import heapq
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from bench.conversations import Conversation, ConversationSource, Traffic, Turn
from bench.modelled_worker import ModelledSampling, ModelledWorker, StepCost, output_tokens
from bench.recording import Target, report
from scheduler.core.config import CoreConfig
from scheduler.core.decisions import Finished, Outputs
from scheduler.core.events import Capacity, FinishReason, Request, StepResult
from scheduler.core.scheduler import Scheduler

ROUTER = 1
SAMPLE_EVERY_STEPS = 500
PLANS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Report:
    """What a simulation showed."""

    num_requests: int
    num_steps: int
    simulated_s: float
    wall_s: float
    core_us_per_step: float
    """schedule and apply, in CPU time."""
    core_us_per_accept: float
    mean_decoding: float
    """Tokens generated per step."""
    output_tokens_per_s: float
    """In simulated time."""
    busy_share: float
    """Of the workers' time."""
    prefix_hit_rate: float
    kv_waste_percent: float
    """Of the token places in used blocks, those that hold none."""
    queue_p50_s: float
    queue_p99_s: float
    first_token_p50_s: float
    first_token_p99_s: float
    num_preemptions: int
    num_overrun_tokens: int
    num_aborted: int


@dataclass(slots=True)
class _Link:
    """One replica: its worker, when it is free, and the results on their way."""

    worker: ModelledWorker
    free_at: float = 0.0
    busy_s: float = 0.0
    results: deque[StepResult] = field(default_factory=deque)


@dataclass(slots=True)
class _Tally:
    """What is summed up on the way."""

    num_steps: int = 0
    num_finished: int = 0
    num_aborted: int = 0
    step_ns: int = 0
    accept_ns: int = 0
    queue_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    waste: list[tuple[int, int]] = field(default_factory=list)
    """(places without a token, places in used blocks), sampled."""


class Simulation:
    """One run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._source = ConversationSource(Traffic(), arguments.seed)
        self._random = np.random.default_rng(arguments.seed + 1)
        self._num_requests = arguments.requests
        self._rate = arguments.rate
        self._abort_share = arguments.abort_share
        self._half_trip_s = arguments.round_trip / 2
        capacity = Capacity(
            num_blocks=arguments.num_blocks,
            block_size=arguments.block_size,
            max_num_seqs=arguments.max_num_seqs,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
            max_model_len=Traffic().max_total_tokens,
        )
        self._scheduler = Scheduler(
            CoreConfig(
                hash_seed=b"simulation",
                max_num_seqs=arguments.max_num_seqs,
                max_num_batched_tokens=arguments.max_num_batched_tokens,
                enable_prefix_caching=not arguments.no_enable_prefix_caching,
            )
        )
        cost = StepCost(arguments.step_fixed, arguments.step_per_token, arguments.step_per_context)
        self._links = {
            f"replica-{i}": _Link(ModelledWorker(capacity, cost)) for i in range(arguments.replicas)
        }
        for name in self._links:
            self._scheduler.attach(name, capacity)
        self._block_size = arguments.block_size
        self._events: list[tuple[float, int, object]] = []
        self._serials = count()
        self._ids = count()
        self._running: dict[int, tuple[Turn, Request]] = {}
        self._num_submitted = 0
        self._tally = _Tally()

    def run(self) -> Report:
        """Until every request has ended."""
        started = time.perf_counter()
        self._at(0.0, None)
        now = 0.0
        while self._events:
            now, _, event = heapq.heappop(self._events)
            match event:
                case None:
                    self._open_conversation(now)
                case str():
                    self._receive(event, now)
                case Turn():
                    self._submit(event, now)
                case int():
                    self._hear(self._scheduler.abort(ROUTER, event, now), now)
            self._send_plans(now)
        self._scheduler.check_integrity()
        return self._report(now, time.perf_counter() - started)

    # ---- events: None opens a conversation, a name delivers that replica's result, a turn is
    # submitted, a number is the id of a sequence whose client leaves

    def _at(self, when: float, event: object) -> None:
        heapq.heappush(self._events, (when, next(self._serials), event))

    def _open_conversation(self, now: float) -> None:
        if self._num_submitted < self._num_requests:
            self._say_next(self._source.open(), now)
            self._at(now + self._source.gap_s(self._rate), None)

    def _say_next(self, conversation: Conversation, when: float) -> None:
        turn = self._source.next_turn(conversation)
        if turn is not None and self._num_submitted < self._num_requests:
            self._num_submitted += 1
            self._at(when, turn)

    def _submit(self, turn: Turn, now: float) -> None:
        sequence_id = next(self._ids)
        request = Request(
            router=ROUTER,
            sequence_id=sequence_id,
            token_ids=turn.token_ids,
            num_prompt_tokens=len(turn.token_ids),
            max_tokens=turn.max_tokens,
            seed=sequence_id,
            sampling=ModelledSampling(turn.num_output_tokens),
        )
        started = time.thread_time_ns()
        self._scheduler.accept(request, now)
        self._tally.accept_ns += time.thread_time_ns() - started
        self._running[sequence_id] = (turn, request)
        if self._random.random() < self._abort_share:
            self._at(now + float(self._random.exponential(2.0)), sequence_id)

    def _send_plans(self, now: float) -> None:
        for name, link in self._links.items():
            while len(link.results) < PLANS_AHEAD:
                started = time.thread_time_ns()
                plan = self._scheduler.schedule(name, now)
                self._tally.step_ns += time.thread_time_ns() - started
                if plan is None:
                    break
                result, seconds = link.worker.execute(plan)
                link.free_at = max(link.free_at, now + self._half_trip_s) + seconds
                link.busy_s += seconds
                link.results.append(result)
                self._at(link.free_at + self._half_trip_s, name)

    def _receive(self, name: str, now: float) -> None:
        result = self._links[name].results.popleft()
        started = time.thread_time_ns()
        outputs = self._scheduler.apply(name, result, now)
        self._tally.step_ns += time.thread_time_ns() - started
        self._tally.num_steps += 1
        self._hear(outputs, now)
        if self._tally.num_steps % SAMPLE_EVERY_STEPS == 0:
            state = self._scheduler.state()
            places = (state.num_blocks_used - state.num_blocks_limbo) * self._block_size
            self._tally.waste.append((state.num_wasted_token_slots, places))

    def _hear(self, outputs: Outputs, now: float) -> None:
        for finished in outputs.finished:
            self._end(finished, now)

    def _end(self, finished: Finished, now: float) -> None:
        turn, request = self._running.pop(finished.sequence_id)
        tally = self._tally
        tally.num_finished += 1
        tally.num_aborted += finished.reason is FinishReason.ABORT
        if finished.num_output_tokens:
            tally.queue_s.append(finished.queue_s)
            tally.first_token_s.append(finished.queue_s + finished.prefill_s)
        prompt = len(request.token_ids)
        answer = output_tokens(request.seed, prompt, prompt + finished.num_output_tokens)
        turn.conversation.history = np.concatenate((request.token_ids, answer))
        self._say_next(turn.conversation, now + self._source.thinking_s())

    def _report(self, now: float, wall_s: float) -> Report:
        tally, state = self._tally, self._scheduler.state()
        assert not self._running, "a request has not ended"
        assert state.num_blocks_used == 0, "a block was not returned"
        waste = np.array(tally.waste or [(0, 1)], float).sum(axis=0)
        queue, first = (
            np.percentile(seconds or [0.0], [50, 99])
            for seconds in (tally.queue_s, tally.first_token_s)
        )
        return Report(
            num_requests=tally.num_finished,
            num_steps=tally.num_steps,
            simulated_s=round(now, 1),
            wall_s=round(wall_s, 1),
            core_us_per_step=round(tally.step_ns / max(1, tally.num_steps) / 1000, 1),
            core_us_per_accept=round(tally.accept_ns / max(1, tally.num_finished) / 1000, 1),
            mean_decoding=round(state.num_generated_tokens / max(1, tally.num_steps), 1),
            output_tokens_per_s=round(state.num_generated_tokens / now, 1),
            busy_share=round(
                sum(k.busy_s for k in self._links.values()) / now / len(self._links), 3
            ),
            prefix_hit_rate=round(
                state.num_prefix_hit_tokens / max(1, state.num_prefix_query_tokens), 4
            ),
            kv_waste_percent=round(100 * waste[0] / waste[1], 2),
            queue_p50_s=round(float(queue[0]), 4),
            queue_p99_s=round(float(queue[1]), 4),
            first_token_p50_s=round(float(first[0]), 4),
            first_token_p99_s=round(float(first[1]), 4),
            num_preemptions=state.num_preemptions,
            num_overrun_tokens=state.num_overrun_tokens,
            num_aborted=tally.num_aborted,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--rate", type=float, default=60.0, help="conversations opened per second")
    parser.add_argument("--abort-share", type=float, default=0.02, help="clients that leave early")
    parser.add_argument("--num-blocks", type=int, default=25_000, help="KV blocks per replica")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--no-enable-prefix-caching", action="store_true")
    # An 8B model on one GPU of the H100 class.
    parser.add_argument("--step-fixed", type=float, default=5e-3, help="seconds per step")
    parser.add_argument("--step-per-token", type=float, default=2e-5, help="seconds per token")
    parser.add_argument("--step-per-context", type=float, default=4e-8, help="seconds per position")
    parser.add_argument("--round-trip", type=float, default=3e-4, help="seconds, plan and result")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, help="also write the figures here")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    simulation = Simulation(arguments)
    gc.collect()
    gc.freeze()
    result = simulation.run()
    waste = Target("KV waste, percent of used blocks", result.kv_waste_percent, 4.0)
    report(asdict(result), [waste], arguments.save)


if __name__ == "__main__":
    main()
