"""What the core is told: requests, replicas and step results, as frozen data.

Times are seconds on one monotonic clock, passed in by the caller. Columns are int32 arrays that
share an index. Whatever the core does not decide on (sampling parameters, the client's own id) is
carried through as it is.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Int32Column = npt.NDArray[np.int32]
BoolColumn = npt.NDArray[np.bool_]
UInt8Column = npt.NDArray[np.uint8]


class FinishReason(IntEnum):
    """Why a sequence ended; the numbers are those of `quire.v1.FinishReason`."""

    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4
    TIMEOUT = 5


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request: `num_samples` sequences over one prompt.

    It makes sense in itself: whoever brings it in has checked it against what is said here. Sample
    i is known to the router as `sequence_id + i` and draws with `seed + i`.
    """

    router: int
    """The connection it came over; with a sequence id it names a sequence."""
    sequence_id: int
    token_ids: Int32Column
    """Prompt, then output tokens the client already has (some only when it is submitted anew)."""
    num_prompt_tokens: int
    """At least 1."""
    max_tokens: int
    """Output tokens at most, counting those already in `token_ids`. 0: the prompt's vector is
    wanted and nothing else; then there is one sample, and no output in `token_ids`."""
    seed: int
    num_samples: int = 1
    """At least 1."""
    priority: int = 0
    """Lower is sooner."""
    cache_salt: str = ""
    adapter: str = ""
    sampling: object = None
    """Opaque: handed to the worker at admission."""
    request_id: str = ""
    probe: bool = False
    """No client's: metrics leave it out."""
    needs_every_position: bool = False
    """Something is read off each position, so that none may come from the prefix cache."""
    score_from: int | None = None
    """Sample 0 is to score the prompt's tokens from this one on; token 0 has nothing before it, so
    this is at least 1. None, or as many as the prompt: none are."""

    tenant: str = ""
    """On whose behalf: tenants get even shares. Empty: nobody's in particular, which is a tenant
    like any other."""
    can_draft: bool = False
    """What may come at a position depends on no token before it but by the model, so that a worker
    may suppose several and sample after each."""
    resubmitted: bool = False
    """It was accepted before, by a scheduler that is gone, so it is not refused for load. Output
    in `token_ids` says the same."""
    deadline_s: float = 0.0
    """Seconds from acceptance by which it must have ended; 0: it may take its time."""

    @property
    def max_total_tokens(self) -> int:
        """Prompt and output together."""
        return self.num_prompt_tokens + self.max_tokens

    @property
    def num_positions(self) -> int:
        """Positions computed at most: that of the last output token never is."""
        return self.num_prompt_tokens + max(0, self.max_tokens - 1)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a replica brings."""

    num_blocks: int
    """Usable blocks; their ids are 1 to num_blocks. Block 0 is the null block. None at all: an
    encoder, which keeps no KV and computes each prompt whole."""
    block_size: int
    max_num_seqs: int
    """Slots 0 to max_num_seqs - 1."""
    max_num_batched_tokens: int
    max_model_len: int
    model_revision: str = ""
    graph_buckets: tuple[int, ...] = ()
    """Numbers of decode rows that the replica has a captured step for, ascending."""
    max_draft_tokens: int = 0
    """Tokens that a slot may draft in a step; 0: the replica drafts none."""

    def graph_bucket(self, num_decodes: int) -> int:
        """Rows of the smallest captured step that holds so many decode rows; 0 if there is none."""
        index = bisect_left(self.graph_buckets, num_decodes)
        found = num_decodes > 0 and index < len(self.graph_buckets)
        return self.graph_buckets[index] if found else 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a replica's blocks hold from epochs before: names that a scheduler gave them."""

    hash_seed: bytes
    """The secret under which they were made."""
    block: Int32Column
    """Each once, 1 to num_blocks."""
    name: tuple[bytes, ...]
    """Shares an index with `block`; each once."""


_NO_SLOT = np.empty(0, np.int32)
_NO_FINISH = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a plan produced: one entry per live row that sampled, and after that of a slot that
    drafted one more for each accepted token; one per vector, and one per run of prompt tokens that
    it scored."""

    step_id: int
    slot: Int32Column
    generation: Int32Column
    token_id: Int32Column
    finish: UInt8Column
    """`FinishReason` of rows that ended on the device (STOP, LENGTH, ERROR), else 0."""
    vector_slot: Int32Column = field(default_factory=lambda: _NO_SLOT)
    """Of prompts that are complete and have their vector; the vectors themselves stay outside."""
    vector_generation: Int32Column = field(default_factory=lambda: _NO_SLOT)
    vector_finish: UInt8Column = field(default_factory=lambda: _NO_FINISH)
    """STOP, or ERROR for a vector that is not finite."""
    score_slot: Int32Column = field(default_factory=lambda: _NO_SLOT)
    """Runs of consecutive prompt tokens; what was found out about them stays outside."""
    score_generation: Int32Column = field(default_factory=lambda: _NO_SLOT)
    score_start: Int32Column = field(default_factory=lambda: _NO_SLOT)
    """Index in the prompt of the run's first token."""
    score_length: Int32Column = field(default_factory=lambda: _NO_SLOT)
    drafted: Int32Column = field(default_factory=lambda: _NO_SLOT)
    """Tokens drafted; shares an index with the plan's `draft_slot`."""


class WrongResult(ValueError):
    """No worker that does what its plan says has this result: it is broken, and not the core."""


class Refused(Exception):
    """The request was not accepted; nothing of it is kept.

    `invalid` tells a request that can never be served (the client's fault) from one that may be
    retried later (a full queue, a drain), and then `retry_after_s` says when, unless it is 0.
    `reason` is one word, for metrics: "draining", or if None "invalid" or "overloaded".
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        invalid: bool = True,
        retry_after_s: float = 0.0,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.invalid = invalid
        self.retry_after_s = retry_after_s
        self.reason = reason or ("invalid" if invalid else "overloaded")
