"""What goes over the wire, as the scheduler holds it: frozen data, free of protobuf."""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from scheduler.core.events import Capacity, Int32Column, Inventory, StepResult

Float32Column = npt.NDArray[np.float32]


class Pooling(IntEnum):
    """How a prompt becomes a vector; the numbers are those of `quire.v1.Pooling`."""

    LAST = 1
    MEAN = 2
    CLS = 3


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model that a worker has loaded."""

    name: str
    revision: str
    max_model_len: int
    """Prompt and output tokens together."""
    vocab_size: int
    dtype: str
    pooling: Pooling | None = None
    """None: no embeddings."""
    embedding_dim: int = 0
    is_encoder: bool = False
    """Nothing can be generated."""

    def serves_like(self, other: "ModelCard") -> bool:
        """Whether a sequence may move between workers that hold these two."""
        return self == replace(other, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """One rank introduces itself."""

    worker_id: str
    replica_id: str
    rank: int
    world_size: int
    model: ModelCard
    capacity: Capacity
    pid: int
    device: str
    inventory: Inventory | None = None
    """What its blocks hold from epochs before; None: nothing."""


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Where a step's time went on the worker, in seconds."""

    wait_s: float
    prepare_s: float
    forward_s: float
    sample_s: float

    @property
    def busy_s(self) -> float:
        """Everything but the wait for a plan."""
        return self.prepare_s + self.forward_s + self.sample_s


@dataclass(frozen=True, slots=True)
class LogprobTable:
    """Logprobs of some of a step's tokens: one row per such token, its alternatives end to end.

    `row` points into the token column that the table belongs to. `row`, `logprob`, `rank` and
    `num_top` share an index, `top_token_id` and `top_logprob` another.
    """

    row: Int32Column
    logprob: Float32Column
    rank: Int32Column
    num_top: Int32Column
    top_token_id: Int32Column
    top_logprob: Float32Column

    def of(self, result_row: Int32Column) -> "LogprobTable | None":
        """The part that speaks of these rows, pointing into `result_row` instead; None if empty."""
        highest = int(max(self.row.max(initial=-1), result_row.max(initial=-1)))
        position = np.full(highest + 1, -1, np.int32)
        position[result_row] = np.arange(result_row.size, dtype=np.int32)
        row = position[self.row]
        kept = row >= 0
        if not kept.any():
            return None
        top = np.repeat(kept, self.num_top)
        return LogprobTable(
            row=row[kept],
            logprob=self.logprob[kept],
            rank=self.rank[kept],
            num_top=self.num_top[kept],
            top_token_id=self.top_token_id[top],
            top_logprob=self.top_logprob[top],
        )


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Logprobs of runs of consecutive prompt tokens; the runs' columns share an index."""

    start: Int32Column
    """Index in its prompt of a run's first token."""
    length: Int32Column
    logprobs: LogprobTable
    """Of the runs' tokens, one after another: its `row` counts them."""

    def of(self, run: Int32Column) -> "ScoreTable":
        """The part that speaks of these runs."""
        if run.size == self.start.size:
            return self
        first = np.cumsum(self.length) - self.length
        rows = [np.arange(first[i], first[i] + self.length[i], dtype=np.int32) for i in run]
        logprobs = self.logprobs.of(np.concatenate(rows))
        assert logprobs is not None, "a run has at least one token"
        return ScoreTable(self.start[run], self.length[run], logprobs)


VectorTable = npt.NDArray[np.float32]
"""Vectors of prompts, [rows, embedding_dim]."""


@dataclass(frozen=True, slots=True)
class Result:
    """A step result as a worker sent it, with what the core has no use for."""

    epoch: int
    step: StepResult
    logprobs: LogprobTable | None
    timing: StepTiming
    vectors: VectorTable | None = None
    """Its rows are those of `step.vector_slot`."""
    scores: ScoreTable | None = None
    """Its runs are those of `step.score_slot`."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One attached replica, as the shell knows it; the core knows its blocks and sequences."""

    replica_id: str
    epoch: int
    device: str
    pids: tuple[int, ...]
    num_steps: int
    last_seen_s: float
    """Seconds since it was last heard of."""
    step_age_s: float | None
    """Seconds since the oldest plan in flight could start; None when there is none."""
    step_patience_s: float
    """Seconds that plan may take before the replica is given up; 0 when there is none."""


@dataclass(frozen=True, slots=True)
class CellView:
    """The cell at one moment, as the shell knows it."""

    model: ModelCard | None
    """None until the first replica has attached."""
    replicas: tuple[ReplicaView, ...]
    num_routers: int
    draining: bool
    incarnation: int
    uptime_s: float
