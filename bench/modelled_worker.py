"""A worker that takes time but computes nothing: plans in, step results and durations out.

It mirrors slots as a real one does, in numpy, so that driving the scheduling core with it measures
the core. A token is a function of seed and position; how many a sequence yields before its stop
token is part of what the benchmark submits.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.core.decisions import Admission, Plan
from scheduler.core.events import Capacity, FinishReason, Int32Column, StepResult

VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class ModelledSampling:
    """What the model will do with a request."""

    num_output_tokens: int
    """Its stop token comes here, unless the limit comes first."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of one step = fixed + per_token * tokens computed + per_context * positions attended
    to by rows that sample."""

    fixed_s: float
    per_token_s: float
    per_context_s: float


def output_tokens(seed: int, start: int, stop: int) -> Int32Column:
    """The tokens at positions [start, stop) of a sequence."""
    return _tokens(np.full(stop - start, seed % 2**31, np.int64), np.arange(start, stop))


def _tokens(seed: np.ndarray, position: np.ndarray) -> Int32Column:
    mixed = (seed * 2_654_435_761 + position * 40_503 + (seed ^ position)) >> 3
    token_ids: Int32Column = (mixed % VOCABULARY).astype(np.int32)
    return token_ids


class ModelledWorker:
    """One replica's executor."""

    def __init__(self, capacity: Capacity, cost: StepCost) -> None:
        slots = capacity.max_num_seqs
        self._cost = cost
        self._generation = np.zeros(slots, np.int32)
        self._num_tokens = np.zeros(slots, np.int64)
        self._limit = np.zeros(slots, np.int64)
        self._stop = np.zeros(slots, np.int64)
        self._seed = np.zeros(slots, np.int64)
        self._done = np.zeros(slots, np.bool_)
        self._decode = np.empty(0, np.int32)

    def execute(self, plan: Plan) -> tuple[StepResult, float]:
        """The result of a plan and the seconds it took."""
        for admission in plan.admit:
            self._admit(admission)
        if plan.decode is not None:
            self._decode = plan.decode
        slot = self._decode
        if len(plan.chunk_slot):
            caught_up = plan.chunk_start + plan.chunk_length == self._num_tokens[plan.chunk_slot]
            slot = np.concatenate((slot, plan.chunk_slot[caught_up]))
        slot = slot[~self._done[slot]]
        position = self._num_tokens[slot]
        num_tokens = position + 1
        self._num_tokens[slot] = num_tokens
        finish = np.where(num_tokens >= self._stop[slot], FinishReason.STOP, 0)
        finish = np.where(num_tokens >= self._limit[slot], FinishReason.LENGTH, finish)
        self._done[slot] = finish != 0
        result = StepResult(
            step_id=plan.step_id,
            slot=slot,
            generation=self._generation[slot],
            token_id=_tokens(self._seed[slot], position),
            finish=finish.astype(np.uint8),
        )
        cost = self._cost
        context = float(position.sum())
        return result, (
            cost.fixed_s + cost.per_token_s * plan.num_tokens + cost.per_context_s * context
        )

    def _admit(self, admission: Admission) -> None:
        sampling = admission.sampling
        assert isinstance(sampling, ModelledSampling)
        slot = admission.slot
        self._generation[slot] = admission.generation
        self._num_tokens[slot] = len(admission.token_ids)
        self._limit[slot] = admission.max_total_tokens
        self._stop[slot] = admission.num_prompt_tokens + sampling.num_output_tokens
        self._seed[slot] = admission.seed % 2**31
        self._done[slot] = False
