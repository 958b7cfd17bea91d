"""What a step produced, applied to the slots of its replica without touching sequences one by one.

A row counts if its slot still has the tenant that sampled it; the generation tells. Everything else
is over-run: tokens of sequences that were aborted, stopped or preempted while the plan was in
flight. Python runs only for slots whose block is full, whose first token came, or which ended.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.core.events import (
    BoolColumn,
    FinishReason,
    Int32Column,
    StepResult,
    WrongResult,
)
from scheduler.core.in_flight import Sent
from scheduler.core.replica import Replica
from scheduler.core.sequence import Sequence

_ERROR = int(FinishReason.ERROR)
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Tokens of one result that count, as columns that share an index, and who ended by them."""

    router: Int32Column
    sequence_id: Int32Column
    token_id: Int32Column
    result_row: Int32Column
    ended: list[tuple[Sequence, FinishReason]]
    embedded: list[tuple[Sequence, FinishReason, int]]
    """Who ended by a vector, with its row among the result's."""
    score_router: Int32Column
    score_sequence_id: Int32Column
    score_run: Int32Column
    """Runs of scored prompt tokens that count, by their index among the result's."""


def confirm(replica: Replica, result: StepResult, now: float) -> Confirmed:
    """Apply the result of the oldest plan in flight. Raises WrongResult for any other result, and
    for one that leaves out a sequence which its plan computed: that would wait for ever."""
    slots = replica.slots
    for column in (result.slot, result.vector_slot, result.score_slot):
        # Read as unsigned, one comparison covers both ends.
        if column.size and np.count_nonzero(column.view(np.uint32) >= slots.num_slots):
            raise WrongResult(
                f"a slot of step {result.step_id} is not in 0 to {slots.num_slots - 1}"
            )
    again = _follows(result.slot)
    num_accepted = 0 if again is None else int(np.count_nonzero(again))
    plan = replica.settle(result.step_id, num_accepted, now)
    live = slots.are_held(result.slot, result.generation)
    first = live if again is None else live & ~again
    _check_complete(result.step_id, "token", plan.tokens, result.slot[first])
    _check_drafts(plan, result, again)
    embedded = []
    if result.vector_slot.size or plan.vectors.size:
        embedded = _confirm_vectors(replica, plan, result)
    score_run = score_slot = _NONE
    if result.score_slot.size:
        score_run = _confirm_scores(replica, result)
        score_slot = result.score_slot[score_run]
    # Rows whose logits were not finite have no token.
    counts = live & (result.finish != _ERROR)
    row = counts.nonzero()[0]
    slot, token, finish = result.slot[counts], result.token_id[counts], result.finish[counts]
    accepted = _NONE
    if again is None:
        num_tokens = _append_one(replica, slot, token)
    else:
        again = again[counts]
        num_tokens, accepted = _append(replica, slot, token, again), slot[again]
    if plan.draft_slot.size:
        _settle_drafts(replica, plan, result.drafted, accepted)
    for new in slot[slots.awaits_first_token.take(slot)].tolist():
        slots.awaits_first_token[new] = False
        slots.tenant(new).first_token_at = now
    replica.counters.num_generated_tokens += len(row)
    replica.counters.num_overrun_tokens += len(live) - int(np.count_nonzero(live))

    ended = []
    full = num_tokens >= slots.max_total_tokens.take(slot)
    for i in np.logical_or(finish, full).nonzero()[0].tolist():
        reason = FinishReason(finish[i]) if finish[i] else FinishReason.LENGTH
        ended.append((slots.tenant(slot[i]), reason))
    if len(row) < len(live):
        broken = result.slot[live & (result.finish == _ERROR)]
        ended += [(slots.tenant(s), FinishReason.ERROR) for s in broken.tolist()]
    return Confirmed(
        router=slots.router.take(slot),
        sequence_id=slots.sequence_id.take(slot),
        token_id=token,
        result_row=row.astype(np.int32),
        ended=ended,
        embedded=embedded,
        score_router=slots.router[score_slot],
        score_sequence_id=slots.sequence_id[score_slot],
        score_run=score_run,
    )


def _check_complete(step: int, what: str, due: Int32Column, answered: Int32Column) -> None:
    if due.tobytes() == answered.tobytes():
        return  # as a rule they come in the plan's order
    if not np.array_equal(np.sort(due), np.sort(answered)):
        missing, unasked = np.setdiff1d(due, answered), np.setdiff1d(answered, due)
        if not len(missing) + len(unasked):
            raise WrongResult(f"the result of step {step} names a slot twice")
        slot, wrong = (missing[0], "no") if len(missing) else (unasked[0], "an unasked")
        raise WrongResult(f"the result of step {step} has {wrong} {what} for slot {slot}")


def _follows(slot: Int32Column) -> BoolColumn | None:
    """Which rows have the slot of the row before: they were drafted, and accepted. None: none."""
    if slot.size < 2:
        return None
    follows = slot[1:] == slot[:-1]
    return np.append(False, follows) if np.count_nonzero(follows) else None


def _check_drafts(plan: Sent, result: StepResult, again: BoolColumn | None) -> None:
    """Raises WrongResult unless the plan let each slot draft what the result says it has, no more
    was accepted than that, and nothing came after an end."""
    drafted, allowed = result.drafted, plan.draft_length
    step = result.step_id
    if drafted.size != allowed.size:
        raise WrongResult(
            f"the result of step {step} tells of {drafted.size} drafts; its plan has {allowed.size}"
        )
    if drafted.size:
        is_possible = ((drafted >= 0) & (drafted <= allowed)).all()
        if not is_possible or drafted.sum() > plan.max_draft_tokens:
            raise WrongResult(f"the result of step {step} has drafts that its plan does not allow")
    if again is None:
        return
    slot, num_accepted = np.unique(result.slot[again], return_counts=True)
    for one, count in zip(slot.tolist(), num_accepted.tolist(), strict=True):
        if count > drafted[plan.draft_slot == one].sum():
            raise WrongResult(
                f"the result of step {step} has more tokens for slot {one} than it drafted"
            )
    follower = np.flatnonzero(again)
    if result.finish[follower - 1].any():
        raise WrongResult(f"the result of step {step} has a token after an end")
    if (result.generation[follower] != result.generation[follower - 1]).any():
        raise WrongResult(f"the result of step {step} gives a slot to two sequences")


def _settle_drafts(
    replica: Replica, plan: Sent, drafted: Int32Column, accepted: Int32Column
) -> None:
    """Tell who may draft what became of it; `accepted` has a slot for each token that counts."""
    columns = (plan.draft_slot, plan.draft_length, drafted)
    for slot, planned, count in zip(*(column.tolist() for column in columns), strict=True):
        if replica.slots.held[slot]:
            num_accepted = int(np.count_nonzero(accepted == slot))
            replica.settle_draft(slot, planned=planned, drafted=count, accepted=num_accepted)


def _confirm_scores(replica: Replica, result: StepResult) -> Int32Column:
    """The runs whose slots still have the tenant that they score."""
    run = np.flatnonzero(replica.slots.are_held(result.score_slot, result.score_generation))
    for slot, start, length in zip(
        result.score_slot[run].tolist(),
        result.score_start[run].tolist(),
        result.score_length[run].tolist(),
        strict=True,
    ):
        replica.slots.tenant(slot).note_scores(start, start + length)
    return run.astype(np.int32)


def _confirm_vectors(
    replica: Replica, plan: Sent, result: StepResult
) -> list[tuple[Sequence, FinishReason, int]]:
    held = replica.slots.are_held(result.vector_slot, result.vector_generation)
    _check_complete(result.step_id, "vector", plan.vectors, result.vector_slot[held])
    row = np.flatnonzero(held)
    reasons = [FinishReason(finish) for finish in result.vector_finish[row].tolist()]
    replica.counters.num_vectors += reasons.count(FinishReason.STOP)
    tenants = [replica.slots.tenant(slot) for slot in result.vector_slot[row].tolist()]
    return list(zip(tenants, reasons, row.tolist(), strict=True))


def _append(
    replica: Replica, slot: Int32Column, token: Int32Column, again: BoolColumn
) -> Int32Column:
    """Confirmed tokens to their slots, one to each unless some come `again`; returns how many
    tokens the slot has with each."""
    if not again.any():
        return _append_one(replica, slot, token)
    first = np.flatnonzero(~again)
    turn = np.arange(slot.size) - np.repeat(first, np.diff(first, append=slot.size))
    num_tokens = np.empty_like(slot)
    for number in range(int(turn.max()) + 1):
        rows = turn == number
        num_tokens[rows] = _append_one(replica, slot[rows], token[rows])
    return num_tokens


def _append_one(replica: Replica, slot: Int32Column, token: Int32Column) -> Int32Column:
    """One confirmed token to each slot; returns how many tokens each has now."""
    slots = replica.slots
    position = slots.num_tokens.take(slot)
    place = position % slots.block_size
    if np.count_nonzero(place) < place.size:
        crossing = place == 0
        replica.close_blocks(slot[crossing], position[crossing])
    slots.tail[slot, place] = token
    num_tokens = position + 1
    slots.num_tokens[slot] = num_tokens
    return num_tokens
