"""Logprobs of a prompt's own tokens, read off the chunks that compute it.

The logits at a position say how likely each token is to come next. So a chunk of the positions
[start, end) scores the tokens [start + 1, end + 1) as far as they are the prompt's, and of those
only what the scheduler has not been told before: from the slot's `score_from` on.

    token rows   | d0 | d1 | c0 c0 c0 c0 | c1 c1 |          a step: decode rows, then chunks
    runs                     └─ row, length ─┘              consecutive rows of one chunk

Logits are made a tile of rows at a time, so a prompt never has more of them at once than a step of
decode rows has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kernels.sampling import token_logprobs
from worker.executor import Model
from worker.plans import Admission, BatchPlan, Int32Column, Logprobs, Scores

TILE_ROWS = 64
"""Rows whose logits are made at once, where a step has so many decode rows."""

_NONE = np.empty(0, np.int32)


@dataclass(frozen=True)
class ScoreRun:
    """Consecutive tokens of one prompt that a step scores.

    Attributes:
        slot: whose prompt.
        generation: of the slot's sequence.
        start: index in the prompt of the first.
        length: how many.
        row: the step's token row whose logits score the first; the others' follow.
        num_top: alternatives of each.
    """

    slot: int
    generation: int
    start: int
    length: int
    row: int
    num_top: int


class PromptScores:
    """What each slot's sequence wants to know of its prompt.

    Args:
        max_num_seqs: slots.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._generation = np.zeros(max_num_seqs, np.int64)
        self._score_from = np.zeros(max_num_seqs, np.int64)
        self._score_until = np.zeros(max_num_seqs, np.int64)
        self._num_top = np.zeros(max_num_seqs, np.int64)

    def admit(self, admission: Admission) -> None:
        """Takes a slot's new sequence."""
        slot, num_top = admission.slot, admission.sampling.num_prompt_logprobs
        self._generation[slot] = admission.generation
        self._score_from[slot] = max(1, admission.score_from)
        self._score_until[slot] = 0 if num_top is None else admission.num_prompt_tokens
        self._num_top[slot] = num_top or 0

    def runs(self, plan: BatchPlan, num_decodes: int) -> tuple[ScoreRun, ...]:
        """What the chunks of a plan score, in their order.

        Args:
            plan: the step; its admissions have been taken.
            num_decodes: rows before the first chunk's.
        """
        slot, length = plan.chunk_slot, plan.chunk_length.astype(np.int64)
        if not self._score_until[slot].any():
            return ()
        first = plan.chunk_start + 1
        start = np.maximum(first, self._score_from[slot])
        end = np.minimum(first + length, self._score_until[slot])
        row = np.cumsum(length) - length + num_decodes + start - first
        return tuple(
            ScoreRun(
                slot=int(slot[i]),
                generation=int(self._generation[slot[i]]),
                start=int(start[i]),
                length=int(end[i] - start[i]),
                row=int(row[i]),
                num_top=int(self._num_top[slot[i]]),
            )
            for i in np.flatnonzero(end > start).tolist()
        )


def score(
    model: Model,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    runs: Sequence[ScoreRun],
    tile_rows: int,
) -> tuple[torch.Tensor, ...]:
    """The logprobs of the runs' tokens; waits for nothing on the device.

    Args:
        model: makes the logits.
        hidden: [num_tokens, hidden_size], what the head reads, of the step's rows.
        tokens: [slots, positions] integer, the known tokens.
        runs: at least one.
        tile_rows: rows whose logits are made at once.

    Returns:
        logprob, rank, top_token_id and top_logprob, each flat, of the runs one after another.
    """
    columns = [
        (values.logprob, values.rank, values.top_token_id.flatten(), values.top_logprob.flatten())
        for run in runs
        for values in (
            token_logprobs(
                model.logits(hidden[run.row + offset : run.row + offset + count]),
                tokens[run.slot, run.start + offset : run.start + offset + count].long(),
                run.num_top,
            )
            for offset, count in _tiles(run.length, tile_rows)
        )
    ]
    return tuple(torch.cat(column) for column in zip(*columns, strict=True))


def score_columns(runs: Sequence[ScoreRun], values: Sequence[npt.NDArray[np.generic]]) -> Scores:
    """The runs as a result carries them; `values` are `score`'s, on the host."""
    logprob, rank, top_token_id, top_logprob = values
    lengths = [run.length for run in runs]
    return Scores(
        slot=_column([run.slot for run in runs]),
        generation=_column([run.generation for run in runs]),
        start=_column([run.start for run in runs]),
        length=_column(lengths),
        logprobs=Logprobs(
            row=_NONE,
            logprob=logprob.astype(np.float32),
            rank=rank.astype(np.int32),
            num_top=np.repeat(_column([run.num_top for run in runs]), lengths),
            top_token_id=top_token_id.astype(np.int32),
            top_logprob=top_logprob.astype(np.float32),
        ),
    )


def _tiles(length: int, tile_rows: int) -> Iterator[tuple[int, int]]:
    """Offset and number of rows of each tile."""
    for offset in range(0, length, tile_rows):
        yield offset, min(tile_rows, length - offset)


def _column(values: Sequence[int]) -> Int32Column:
    return np.array(values, np.int32)
