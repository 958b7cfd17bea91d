"""Drafts: what is supposed to follow, and that the tokens are those of a sequence without any."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from protos.limits import MAX_DRAFT_TOKENS
from tests.worker.builders import MAX_MODEL_LEN, admission, column, plan
from tests.worker.runners import BLOCK_SIZE, make_device_runner, make_host_runner
from worker.drafts import Drafts, continuation
from worker.host_runner import HostRunner
from worker.loader import LoadedModel
from worker.plans import Admission, FinishReason, PlanError, Sampling, StepResult


def supposed(tokens: Sequence[int], most: int = MAX_DRAFT_TOKENS) -> list[int]:
    found: list[int] = continuation(column(tokens), most).tolist()
    return found


# --- what is supposed ----------------------------------------------------------------------------


def test_what_followed_the_newest_tokens_before_is_supposed() -> None:
    assert supposed([5, 6, 7, 8, 9, 1, 5, 6, 7]) == [8, 9, 1]
    assert supposed([5, 6, 7, 8, 9, 1, 5, 6, 7], most=1) == [8]


def test_nothing_is_supposed_where_fewer_than_two_tokens_agree() -> None:
    for tokens in ([], [4], [4, 4], [1, 2, 3, 4, 5], [1, 9, 2, 9], [7, 1, 2, 8, 2]):
        assert supposed(tokens) == []


def test_the_place_where_most_agrees_counts_and_of_those_the_latest() -> None:
    assert supposed([1, 2, 3, 40, 9, 2, 3, 50, 9, 1, 2, 3])[:1] == [40]
    assert supposed([2, 3, 40, 8, 2, 3, 50, 8, 2, 3, 7, 0, 2, 3])[:1] == [7]


def test_what_repeats_is_supposed_to_go_on_so() -> None:
    assert supposed([8, 1, 2, 1, 2, 1, 2, 1], most=5) == [2, 1, 2, 1, 2]
    assert supposed([3] * 40) == [3] * MAX_DRAFT_TOKENS


def test_no_more_is_supposed_than_agrees() -> None:
    text = list(range(50, 90))
    for agreeing in range(2, 20):
        tokens = [*text, 1, *text[:agreeing]]
        assert len(supposed(tokens)) == min(agreeing, MAX_DRAFT_TOKENS)


def test_rows_count_up_to_the_first_that_was_not_sampled_or_ends() -> None:
    drafts = Drafts(
        np.array([3, 0, 5]), np.array([7, 9, 2]), (column([1, 2, 3]), column([4]), column([6, 7]))
    )
    sampled = column([1, 2, 9, 3, 8, 4, 6, 7, 1])
    finish = np.array([0, 0, 0, 0, 0, 0, FinishReason.STOP, 0, 0], np.uint8)
    kept = drafts.kept(sampled, finish)
    assert [rows.tolist() for rows in kept] == [
        [True, True, True, False],
        [True, False],
        [True, False, False],
    ]


# --- what is computed ----------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one slot yielded."""

    tokens: list[int] = field(default_factory=list)
    finish: int = 0
    logprobs: list[tuple[float, list[int]]] = field(default_factory=list)


@dataclass
class Totals:
    """What a whole generation drafted."""

    drafted: int = 0
    accepted: int = 0


def _note(result: StepResult, outcomes: dict[int, Outcome]) -> None:
    tops: dict[int, tuple[float, list[int]]] = {}
    if result.logprobs is not None:
        first = np.cumsum(result.logprobs.num_top) - result.logprobs.num_top
        for i, row in enumerate(result.logprobs.row.tolist()):
            top = result.logprobs.top_token_id[first[i] : first[i] + result.logprobs.num_top[i]]
            tops[row] = (float(result.logprobs.logprob[i]), top.tolist())
    for row, slot in enumerate(result.slot.tolist()):
        outcome = outcomes[slot]
        assert outcome.finish == 0, "a token after the end"
        outcome.finish = int(result.finish[row])
        outcome.tokens.append(int(result.token_id[row]))
        if row in tops:
            outcome.logprobs.append(tops[row])


def drive(
    runner: HostRunner, sequences: Sequence[Admission], draft: random.Random | int
) -> tuple[dict[int, Outcome], Totals]:
    """All sequences together; each slot may draft up to `draft` tokens, or as chance has it."""
    runner.reset()
    outcomes = {sequence.slot: Outcome() for sequence in sequences}
    limits = {sequence.slot: sequence.max_total_tokens for sequence in sequences}
    lengths = {sequence.slot: len(sequence.token_ids) for sequence in sequences}
    totals = Totals()
    chunks = [(slot, 0, length) for slot, length in lengths.items()]
    _note(runner.step(plan(1, admit=sequences, chunks=chunks)), outcomes)
    for step in range(2, 200):
        decode = [slot for slot, outcome in outcomes.items() if not outcome.finish]
        if not decode:
            return outcomes, totals
        drafts = []
        for slot in decode:
            most = draft if isinstance(draft, int) else draft.randrange(MAX_DRAFT_TOKENS + 1)
            room = limits[slot] - lengths[slot] - len(outcomes[slot].tokens) - 1
            if min(most, room) > 0:
                drafts.append((slot, min(most, room)))
        before = sum(len(outcome.tokens) for outcome in outcomes.values())
        result = runner.step(plan(step, decode=decode, drafts=drafts))
        _note(result, outcomes)
        after = sum(len(outcome.tokens) for outcome in outcomes.values())
        assert len(result.drafted) == len(drafts)
        assert all(
            0 <= found <= most
            for found, (_, most) in zip(result.drafted.tolist(), drafts, strict=True)
        )
        totals.drafted += int(result.drafted.sum())
        totals.accepted += after - before - len(decode)
    raise AssertionError("the sequences do not end")


PROMPTS = [
    [10, 11, 12, 13] * 4,
    [(7 * j) % 300 + 5 for j in range(20)],
    [40, 41, 42, 43, 44, 45, 46, 47, 40, 41, 42],
]


def sequences(*samplings: Sampling, max_total: int = MAX_MODEL_LEN) -> list[Admission]:
    each = -(-MAX_MODEL_LEN // BLOCK_SIZE)
    return [
        admission(
            slot,
            PROMPTS[slot % len(PROMPTS)],
            range(1 + slot * each, 1 + (slot + 1) * each),
            max_total=max_total,
            seed=500 + slot,
            sampling=sampling,
        )
        for slot, sampling in enumerate(samplings)
    ]


# The model says one of few tokens, so what it says repeats itself now and then.
FEW = Sampling(bias_token_ids=(5, 6, 7), bias=(100.0, 100.0, 100.0))

SAMPLINGS = [
    FEW,
    replace(FEW, num_logprobs=3),
    replace(FEW, temperature=1.0),
    replace(FEW, temperature=0.6, top_p=0.8, num_logprobs=2),
    replace(FEW, temperature=0.4, top_k=8, min_p=0.05),
    replace(FEW, stop_token_ids=(6,), min_tokens=20),
]


@pytest.mark.parametrize("seed", range(4))
def test_tokens_logprobs_and_ends_are_those_without_drafts(
    tiny_model: LoadedModel, seed: int
) -> None:
    runner = make_host_runner(tiny_model)
    admitted = sequences(*SAMPLINGS)
    plain, without = drive(runner, admitted, 0)
    assert without.drafted == 0
    drafted, totals = drive(runner, admitted, random.Random(seed))
    assert 0 < totals.accepted < totals.drafted
    for slot, expected in plain.items():
        found = drafted[slot]
        assert (found.tokens, found.finish) == (expected.tokens, expected.finish)
        assert [top for _, top in found.logprobs] == [top for _, top in expected.logprobs]
        assert [value for value, _ in found.logprobs] == pytest.approx(
            [value for value, _ in expected.logprobs], abs=1e-3
        )


def test_a_stop_token_in_the_midst_of_accepted_tokens_ends_there(tiny_model: LoadedModel) -> None:
    runner = make_host_runner(tiny_model)
    plain, _ = drive(runner, sequences(FEW), 0)
    tokens = plain[0].tokens
    for stop in sorted(set(tokens)):
        end = tokens.index(stop) + 1
        found, _ = drive(runner, sequences(replace(FEW, stop_token_ids=(stop,))), MAX_DRAFT_TOKENS)
        assert found[0].tokens == tokens[:end]
        assert found[0].finish == FinishReason.STOP


def test_the_limit_in_the_midst_of_accepted_tokens_ends_there(tiny_model: LoadedModel) -> None:
    runner = make_host_runner(tiny_model)
    plain, _ = drive(runner, sequences(FEW), 0)
    for count in range(30, 50):
        limit = len(PROMPTS[0]) + count
        found, totals = drive(runner, sequences(FEW, max_total=limit), MAX_DRAFT_TOKENS)
        assert found[0].tokens == plain[0].tokens[:count]
        assert found[0].finish == FinishReason.LENGTH
        assert totals.accepted > 0


@pytest.mark.parametrize(
    "sampling",
    [
        replace(FEW, repetition_penalty=1.3),
        replace(FEW, frequency_penalty=0.5),
        replace(FEW, allowed_token_ids=tuple(range(60))),
        replace(FEW, bad_words=((5, 6),)),
    ],
)
def test_where_what_came_before_has_a_say_nothing_is_drafted(
    tiny_model: LoadedModel, sampling: Sampling
) -> None:
    runner = make_host_runner(tiny_model)
    plain, _ = drive(runner, sequences(sampling), 0)
    found, totals = drive(runner, sequences(sampling), MAX_DRAFT_TOKENS)
    assert totals.drafted == 0
    assert found[0].tokens == plain[0].tokens


def test_plans_that_were_made_before_the_end_was_known_yield_nothing(
    tiny_model: LoadedModel,
) -> None:
    runner = make_host_runner(tiny_model)
    limit = len(PROMPTS[0]) + 40
    admitted = sequences(FEW, max_total=limit)
    outcomes = {0: Outcome()}
    _note(runner.step(plan(1, admit=admitted, chunks=[(0, 0, len(PROMPTS[0]))])), outcomes)
    step = 1
    while not outcomes[0].finish:
        step += 1
        room = limit - len(PROMPTS[0]) - len(outcomes[0].tokens) - 1
        most = min(room - 1, MAX_DRAFT_TOKENS)  # so the last token is not drafted
        result = runner.step(plan(step, decode=[0], drafts=[(0, most)] if most > 0 else []))
        _note(result, outcomes)
    assert step < 40
    for _ in range(3):
        step += 1
        result = runner.step(plan(step, decode=[0], drafts=[(0, 1)]))
        assert (len(result.slot), result.drafted.tolist()) == (0, [0])


def test_who_has_most_to_say_drafts_first_and_who_has_too_little_not_at_all(
    tiny_model: LoadedModel,
) -> None:
    runner = make_host_runner(tiny_model)
    each = -(-MAX_MODEL_LEN // BLOCK_SIZE)
    # The last token is sampled: 5, whatever came before. So 2, 4 and 6 tokens agree.
    sampling = Sampling(bias_token_ids=(5,), bias=(100.0,))
    admitted = [
        admission(
            slot,
            [*range(20, 19 + agreeing), 5, *range(60, 70), *range(20, 19 + agreeing)],
            range(1 + slot * each, 1 + (slot + 1) * each),
            sampling=sampling,
        )
        for slot, agreeing in enumerate((2, 4, 6))
    ]
    chunks = [(one.slot, 0, len(one.token_ids)) for one in admitted]
    for together, at_least, expected in (
        (30, 1, [2, 4, 6]),
        (30, 3, [0, 4, 6]),
        (8, 1, [0, 2, 6]),
        (8, 3, [0, 0, 6]),
        (3, 4, [0, 0, 0]),
    ):
        runner.reset()
        runner.step(plan(1, admit=admitted, chunks=chunks))
        drafts = [(0, 15), (1, 15), (2, 15)]
        result = runner.step(
            plan(2, decode=[0, 1, 2], drafts=drafts, together=together, at_least=at_least)
        )
        assert result.drafted.tolist() == expected


def test_a_slot_that_has_ended_makes_room_for_one_that_drafts(tiny_model: LoadedModel) -> None:
    runner = make_host_runner(tiny_model)
    again = sequences(FEW)
    expected, _ = drive(runner, again, 0)
    drive(runner, again, MAX_DRAFT_TOKENS)
    found, totals = drive(runner, again, MAX_DRAFT_TOKENS)
    assert found[0].tokens == expected[0].tokens
    assert totals.accepted > 0


@pytest.mark.parametrize(
    ("drafts", "complaint"),
    [
        ([(1, 2)], "draft_slot names a slot that holds no sequence"),
        ([(0, 2), (0, 1)], "draft_slot names a slot twice"),
        ([(0, 0)], "drafts less than a token"),
        ([(0, 4)], "drafts at a position that has no block"),
        ([(0, 3)], "drafts beyond max_total_tokens"),
    ],
)
def test_a_plan_that_lets_a_slot_draft_what_it_cannot_is_refused(
    tiny_model: LoadedModel, drafts: list[tuple[int, int]], complaint: str
) -> None:
    runner = make_host_runner(tiny_model)
    # Position 12 has the newest token; the block ends after position 15.
    one = admission(0, list(range(20, 32)), [1, 2], max_total=16)
    runner.step(plan(1, admit=[one], chunks=[(0, 0, 12)]))
    with pytest.raises(PlanError, match=complaint):
        runner.step(plan(2, decode=[0], drafts=drafts))


def test_who_does_not_decode_does_not_draft(tiny_model: LoadedModel) -> None:
    runner = make_host_runner(tiny_model)
    one = admission(0, list(range(20, 32)), [1, 2])
    runner.step(plan(1, admit=[one], chunks=[(0, 0, 12)]))
    with pytest.raises(PlanError, match="drafts that does not decode"):
        runner.step(plan(2, decode=[], drafts=[(0, 1)]))


def test_drafts_beside_prompts_in_the_making(tiny_model: LoadedModel) -> None:
    runner = make_host_runner(tiny_model)
    first, second = sequences(FEW, Sampling(temperature=1.0))
    expected, _ = drive(runner, [first, second], 0)
    runner.reset()
    outcomes = {0: Outcome(), 1: Outcome()}
    _note(runner.step(plan(1, admit=[first], chunks=[(0, 0, len(PROMPTS[0]))])), outcomes)
    accepted = 0
    for start in range(len(PROMPTS[1])):
        result = runner.step(
            plan(
                2 + start,
                admit=[] if start else [second],
                decode=[0],
                chunks=[(1, start, 1)],
                drafts=[(0, 2)],
            )
        )
        accepted += int((result.slot == 0).sum()) - 1
        _note(result, outcomes)
    assert accepted > 0
    assert outcomes[0].tokens == expected[0].tokens[: len(outcomes[0].tokens)]
    assert outcomes[1].tokens == expected[1].tokens[:1]


def test_a_device_that_drafts_nothing_says_so(tiny_model: LoadedModel) -> None:
    runner = make_device_runner(tiny_model)
    assert runner.max_draft_tokens == 0
    assert make_host_runner(tiny_model).max_draft_tokens == MAX_DRAFT_TOKENS
    runner.launch(
        plan(1, admit=[admission(0, [5, 6, 7], [1])], chunks=[(0, 0, 3)]), 0, lambda _: None
    )
    with pytest.raises(PlanError, match="drafts nothing"):
        runner.launch(plan(2, decode=[0], drafts=[(0, 1)]), 0, lambda _: None)
    runner.close()
