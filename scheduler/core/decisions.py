"""What the core decides: batch plans, and the news that an event makes for the routers."""

from dataclasses import dataclass, field

import numpy as np

from scheduler.core.events import FinishReason, Int32Column, Request

_EMPTY = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence takes a slot; everything the worker needs, in full."""

    slot: int
    generation: int
    token_ids: Int32Column
    """All tokens known so far, prompt first."""
    num_prompt_tokens: int
    max_total_tokens: int
    """Prompt and output together at which the sequence ends."""
    blocks: Int32Column
    """First entries of its block table: the blocks whose KV exists (`num_computed` tokens)."""
    num_computed: int
    seed: int
    sampling: object
    score_from: int = 0
    """The first prompt token that is to be scored, where `sampling` asks for that."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One step of one replica, as a change to the worker's mirror: `BatchPlan` in worker.proto."""

    step_id: int
    retire: Int32Column
    admit: tuple[Admission, ...]
    append_slot: Int32Column
    append_index: Int32Column
    append_block: Int32Column
    decode: Int32Column | None
    """The decode set from this step on, in batch order; None: as in the step before."""
    chunk_slot: Int32Column
    chunk_start: Int32Column
    chunk_length: Int32Column
    num_tokens: int
    """Tokens this step computes at most: decode rows, chunks and drafts."""
    graph_bucket: int = 0
    """The captured step to run, by its number of decode rows; 0: none fits, or there are chunks."""
    named_block: Int32Column = field(default_factory=lambda: _EMPTY)
    """Blocks that hold a named prefix once the step has run; kept by the worker for the scheduler
    after this one. A block that is appended and not among them has no name."""
    block_name: bytes = b""
    """Their names, end to end."""
    unnamed_block: Int32Column = field(default_factory=lambda: _EMPTY)
    """Blocks whose name is void."""
    draft_slot: Int32Column = field(default_factory=lambda: _EMPTY)
    """Decoding slots that may draft in this step (speculation.py)."""
    draft_length: Int32Column = field(default_factory=lambda: _EMPTY)
    """Tokens that each of them may draft."""
    max_draft_tokens: int = 0
    """Tokens that all of them together may draft, which are part of `num_tokens`; the worker may
    find fewer."""
    min_draft_tokens: int = 0
    """Who would draft fewer drafts none."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The one end of a sequence."""

    router: int
    sequence_id: int
    reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache at the first admission."""
    num_preemptions: int
    queue_s: float
    prefill_s: float
    decode_s: float
    message: str = ""
    probe: bool = False
    """Of a request that is no client's."""
    vector_row: int | None = None
    """Index of its vector among those of the step result; None unless it wanted and got one."""


def failed(request: Request, sequence_id: int, message: str) -> Finished:
    """The end of a sequence that was never queued."""
    return Finished(
        router=request.router,
        sequence_id=sequence_id,
        reason=FinishReason.ERROR,
        num_prompt_tokens=request.num_prompt_tokens,
        num_output_tokens=0,
        num_cached_tokens=0,
        num_preemptions=0,
        queue_s=0.0,
        prefill_s=0.0,
        decode_s=0.0,
        message=message,
        probe=request.probe,
    )


@dataclass(frozen=True, slots=True)
class Outputs:
    """News of one event: new tokens as columns that share an index, and ends."""

    router: Int32Column = field(default_factory=lambda: _EMPTY)
    sequence_id: Int32Column = field(default_factory=lambda: _EMPTY)
    """Bit pattern of the router's uint32 id."""
    token_id: Int32Column = field(default_factory=lambda: _EMPTY)
    result_row: Int32Column = field(default_factory=lambda: _EMPTY)
    """Index of the token in the step result's columns, where its logprobs are."""
    finished: tuple[Finished, ...] = ()
    score_router: Int32Column = field(default_factory=lambda: _EMPTY)
    score_sequence_id: Int32Column = field(default_factory=lambda: _EMPTY)
    score_run: Int32Column = field(default_factory=lambda: _EMPTY)
    """Index of the run of scored prompt tokens among the step result's."""
