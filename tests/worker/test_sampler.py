"""What the sampler does with slots and their parameters; `tests/kernels` holds the arithmetic."""

import math

import numpy as np
import pytest
import torch

from kernels import sampling as kernel
from tests.worker.builders import admission
from worker.plans import Sampling
from worker.sampler import Sampled, Sampler, logprob_columns
from worker.step_state import SampledColumns, SampledRows

VOCAB_SIZE = 64
NUM_SLOTS = 20


def make_sampler() -> Sampler:
    return Sampler(max_num_seqs=NUM_SLOTS, vocab_size=VOCAB_SIZE)


def rows_of(
    slots: list[int],
    positions: list[int],
    *,
    ended: tuple[int, ...] = (),
    membership: int | None = None,
) -> SampledRows:
    return SampledRows(
        slots=np.array(slots),
        position=np.array(positions),
        live=np.array([slot not in ended for slot in slots]),
        membership=membership,
    )


def some_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def sample(sampler: Sampler, logits: torch.Tensor, rows: SampledRows) -> Sampled:
    return sampler.sample(logits.clone(), rows)


def test_greedy_rows_take_the_likeliest_token() -> None:
    sampler, logits = make_sampler(), some_logits(3)
    for slot in (4, 0, 9):
        sampler.admit(admission(slot, [1, 2], [1]))
    sampled = sample(sampler, logits, rows_of([4, 0, 9], [2, 2, 2]))
    assert sampled.token_id.tolist() == logits.argmax(dim=1).tolist()
    assert not sampled.failed.any()
    assert sampled.logprobs is None


@pytest.mark.parametrize("greedy", [True, False])
def test_rows_that_are_not_finite_fail_alone(greedy: bool) -> None:
    logits, sampler = some_logits(5), make_sampler()
    for slot in range(5):
        params = Sampling(temperature=0.0 if greedy else 1.0, min_p=0.01)
        sampler.admit(admission(slot, [1], [1], sampling=params, seed=slot))
    rows = rows_of([0, 1, 2, 3, 4], [1] * 5)
    healthy = sample(sampler, logits, rows).token_id
    logits[1, 60], logits[3, 5], logits[4] = math.nan, math.inf, -math.inf
    sampled = sample(sampler, logits, rows)
    assert sampled.failed.tolist() == [False, True, False, True, True]
    assert sampled.token_id[[0, 2]].tolist() == healthy[[0, 2]].tolist()


def test_a_seeded_row_is_the_same_alone_and_in_a_batch_of_16() -> None:
    samplings = [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_p=0.8),
        Sampling(temperature=1.2, top_k=7, min_p=0.01),
        Sampling(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.2),
        Sampling(temperature=1.0, bias_token_ids=(3, 9), bias=(4.0, -50.0)),
        Sampling(temperature=1.0, stop_token_ids=(1, 2), min_tokens=5),
        Sampling(num_logprobs=3),
    ]
    logits, slots, positions = some_logits(16), list(range(16)), [3 + slot for slot in range(16)]
    tenants = [
        admission(slot, range(3), [1], seed=(1 << 63) + slot * 77, sampling=samplings[slot % 8])
        for slot in slots
    ]
    together = make_sampler()
    for tenant in tenants:
        together.admit(tenant)
    batch = sample(together, logits, rows_of(slots, positions)).token_id.tolist()
    for slot in slots:
        alone = make_sampler()
        alone.admit(tenants[slot])
        rows = rows_of([slot], [positions[slot]])
        assert sample(alone, logits[slot : slot + 1], rows).token_id.tolist() == [batch[slot]]


def test_the_position_and_the_seed_choose_the_token() -> None:
    sampler, logits = make_sampler(), torch.zeros(1, VOCAB_SIZE)
    drawn = {}
    for seed in (1, 2):
        sampler.admit(admission(0, [1], [1], seed=seed, sampling=Sampling(temperature=1.0)))
        drawn[seed] = [
            sample(sampler, logits, rows_of([0], [position])).token_id.item()
            for position in range(1, 30)
        ]
    assert drawn[1] != drawn[2]
    assert len(set(drawn[1])) > 10


def test_stop_tokens_are_banned_before_min_tokens_and_not_after() -> None:
    sampler, logits = make_sampler(), torch.zeros(2, VOCAB_SIZE)
    logits[:, 7], logits[:, 8], logits[:, 9] = 9.0, 8.0, 7.0
    params = Sampling(stop_token_ids=(7, 8, 10_000), min_tokens=2)
    sampler.admit(admission(0, [1, 1, 1], [1], sampling=params))
    sampler.admit(admission(1, [1, 1, 1], [1]))
    found = [
        sample(
            sampler, logits, rows_of([0, 1], [position, position], membership=1)
        ).token_id.tolist()
        for position in (3, 4, 5, 6)
    ]
    assert found == [[9, 7], [9, 7], [7, 7], [7, 7]]


def test_bias_moves_the_choice_and_skips_tokens_the_model_lacks() -> None:
    sampler, logits = make_sampler(), torch.zeros(2, VOCAB_SIZE)
    logits[:, 5] = 3.0
    params = Sampling(bias_token_ids=(30, 10_000), bias=(3.5, 100.0))
    sampler.admit(admission(0, [1], [1], sampling=params))
    sampler.admit(admission(1, [1], [1]))
    assert sample(sampler, logits, rows_of([0, 1], [1, 1])).token_id.tolist() == [30, 5]


def test_penalties_count_prompt_replayed_and_new_tokens() -> None:
    """Each step's tokens equal those of counting everything anew from the token list."""
    params = Sampling(repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.5)
    sampler = make_sampler()
    tokens, num_prompt = [3, 4, 4, 9, 9], 3
    sampler.admit(admission(6, tokens, [1], num_prompt=num_prompt, sampling=params))
    sampler.admit(admission(2, tokens, [1]))
    for step in range(25):
        logits = some_logits(2, seed=step // 6)
        expected = logits[1].clone()
        for token in set(tokens):
            value = expected[token]
            expected[token] = value / 1.4 if value > 0 else value * 1.4
        for token in set(tokens[num_prompt:]):
            expected[token] -= 0.5 * tokens[num_prompt:].count(token) + 0.3
        rows = rows_of([2, 6], [len(tokens), len(tokens)], membership=1)
        chosen = sample(sampler, logits, rows).token_id.tolist()
        assert chosen == [logits[0].argmax(), expected.argmax()]
        tokens.append(chosen[1])
    assert len(set(tokens)) > 8


def test_an_ended_row_counts_no_tokens() -> None:
    sampler, logits = make_sampler(), torch.zeros(1, VOCAB_SIZE)
    logits[0, 11] = 1.0
    sampler.admit(admission(0, [1], [1], sampling=Sampling(presence_penalty=2.0)))
    for _ in range(3):
        dead = sample(sampler, logits, rows_of([0], [1], ended=(0,), membership=1))
        assert dead.token_id.tolist() == [11]
    sample(sampler, logits, rows_of([0], [1], membership=1))
    assert sample(sampler, logits, rows_of([0], [2], membership=1)).token_id.tolist() != [11]


def test_a_slots_next_tenant_inherits_nothing() -> None:
    sampler, logits = make_sampler(), some_logits(1)
    heavy = Sampling(
        temperature=2.0,
        top_k=1,
        presence_penalty=2.0,
        bias_token_ids=(1,),
        bias=(99.0,),
        stop_token_ids=(int(logits.argmax()),),
        min_tokens=9,
        num_logprobs=2,
    )
    sampler.admit(admission(0, [1], [1], sampling=heavy))
    assert sample(sampler, logits, rows_of([0], [1], membership=1)).token_id.tolist() == [1]
    sampler.admit(admission(0, [1], [1]))
    sampled = sample(sampler, logits, rows_of([0], [1], membership=2))
    assert sampled.token_id.tolist() == [int(logits.argmax())]
    assert sampled.logprobs is None


def test_greedy_rows_pay_for_an_argmax_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, logits = make_sampler(), some_logits(2)
    calls: list[str] = []
    for name in ("add_at_", "penalize_", "draw", "token_logprobs"):
        monkeypatch.setattr(kernel, name, lambda *_, name=name: calls.append(name))
    for slot in (0, 1):
        sampler.admit(admission(slot, [1], [1], sampling=Sampling(stop_token_ids=(4,), top_p=0.5)))
    sample(sampler, logits, rows_of([0, 1], [1, 1]))
    assert calls == []


def test_logprobs_are_of_raw_logits_and_only_for_rows_that_asked() -> None:
    sampler, logits = make_sampler(), some_logits(4)
    biased = Sampling(temperature=0.5, bias_token_ids=(50,), bias=(100.0,), num_logprobs=3)
    sampler.admit(admission(0, [1], [1], sampling=biased))
    sampler.admit(admission(1, [1], [1]))
    sampler.admit(admission(2, [1], [1], sampling=Sampling(num_logprobs=0)))
    sampler.admit(admission(3, [1], [1], sampling=Sampling(num_logprobs=5)))
    sampled = sample(sampler, logits, rows_of([0, 1, 2, 3], [1] * 4))
    assert sampled.token_id[0] == 50
    assert sampled.logprobs is not None

    # Row 2 ended on the device; the result has rows 0, 1 and 3.
    kept = np.array([0, 1, 3])
    tokens = sampled.token_id.astype(np.int32)[kept]
    news = SampledColumns(kept, kept, tokens, np.zeros(3, np.uint8), kept)
    columns = logprob_columns(sampled.logprobs, news)
    assert columns is not None
    reference = logits.log_softmax(dim=1)
    order = logits.argsort(dim=1, descending=True)
    assert columns.row.tolist() == [0, 2]
    assert columns.num_top.tolist() == [3, 5]
    assert columns.rank.tolist() == [order[0].tolist().index(50) + 1, 1]
    assert columns.top_token_id.tolist() == order[0, :3].tolist() + order[3, :5].tolist()
    assert columns.logprob.tolist() == pytest.approx(
        [reference[0, 50].item(), reference[3].max().item()], abs=1e-5
    )
    assert columns.top_logprob.tolist() == pytest.approx(
        reference[0, order[0, :3]].tolist() + reference[3, order[3, :5]].tolist(), abs=1e-5
    )


def test_no_logprobs_remain_when_every_row_that_asked_has_ended() -> None:
    sampler = make_sampler()
    sampler.admit(admission(0, [1], [1], sampling=Sampling(num_logprobs=2)))
    sampled = sample(sampler, some_logits(1), rows_of([0], [1], ended=(0,)))
    assert sampled.logprobs is not None
    assert logprob_columns(sampled.logprobs, SampledColumns.none()) is None
