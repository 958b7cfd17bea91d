"""The sampler against a plain-Python oracle, and its CPU loops against the specification."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from kernels import sampling
from kernels.philox import gumbel_noise
from kernels.sampling_cpu import draw_rows
from kernels.sampling_inputs import DrawParams, PenaltyTables

NEVER = -math.inf


def params(
    num_rows: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> DrawParams:
    return DrawParams(
        temperature=torch.full((num_rows,), temperature),
        top_k=torch.full((num_rows,), top_k),
        top_p=torch.full((num_rows,), top_p),
        min_p=torch.full((num_rows,), min_p),
        seed=torch.arange(num_rows) * 7_919 + seed,
    )


def random_logits(num_rows: int, vocab_size: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows * 1000 + vocab_size)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def kept_by_oracle(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> set[int]:
    """Steps 5 to 8 for one row, word by word."""
    highest = max(logits)
    weight = {t: math.exp((logit - highest) / temperature) for t, logit in enumerate(logits)}
    kept = [t for t in weight if weight[t] > 0 and weight[t] >= min_p]
    kept.sort(key=lambda t: (-logits[t], t))
    if top_k:
        kept = kept[:top_k]
    if top_p < 1:
        total = sum(weight[t] for t in kept)
        mass = 0.0
        for count, token in enumerate(kept, start=1):
            mass += weight[token]
            if mass >= top_p * total:
                kept = kept[:count]
                break
    return set(kept)


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_p": 0.1},
    {"top_p": 0.6},
    {"top_p": 0.99, "temperature": 2.0},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 12, "top_p": 0.7, "min_p": 0.01, "temperature": 1.4},
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("vocab_size", [1, 3, 257])
def test_draw_takes_the_noisiest_token_that_the_filters_keep(
    filters: dict[str, Any], vocab_size: int
) -> None:
    logits = random_logits(24, vocab_size)
    chosen = params(24, **filters)
    position = torch.arange(24) * 3
    noise = gumbel_noise(chosen.seed, position, vocab_size)
    expected = []
    for row, values in enumerate(logits.tolist()):
        settings: dict[str, Any] = {
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
        } | filters
        kept = kept_by_oracle(values, **settings)
        scores = {t: values[t] / settings["temperature"] + noise[row, t].item() for t in kept}
        expected.append(max(scores, key=scores.__getitem__))
    assert sampling.draw_specification(logits, chosen, position).tolist() == expected
    assert draw_rows(logits, chosen, position).tolist() == expected


@pytest.mark.parametrize("filters", FILTERS)
def test_cpu_draw_equals_the_specification_on_a_real_vocabulary(filters: dict[str, Any]) -> None:
    logits = random_logits(6, 49_153)
    logits[0, 1000:] = NEVER
    logits[1] *= 30
    logits[2] = 0.0
    chosen, position = params(6, **filters), torch.arange(6) + 100_000
    specified = sampling.draw_specification(logits, chosen, position)
    assert draw_rows(logits, chosen, position).tolist() == specified.tolist()


def test_equal_logits_rank_by_token_id() -> None:
    logits = torch.zeros(1, 40)
    logits[0, 3] = -1.0
    for position in range(50):
        place = torch.tensor([position])
        token = sampling.draw(logits, params(1, top_k=4), place).item()
        assert token in {0, 1, 2, 4}
        assert token == sampling.draw_specification(logits, params(1, top_k=4), place).item()


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    logits, position = random_logits(16, 999), torch.arange(16) + 5
    for filters in FILTERS:
        together = params(16, **filters)
        batch = sampling.draw(logits, together, position).tolist()
        for row in range(16):
            one = slice(row, row + 1)
            alone = DrawParams(
                together.temperature[one],
                together.top_k[one],
                together.top_p[one],
                together.min_p[one],
                together.seed[one],
            )
            assert sampling.draw(logits[one], alone, position[one]).tolist() == [batch[row]]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 6, "temperature": 1.5}])
def test_draws_follow_the_filtered_distribution(filters: dict[str, Any]) -> None:
    """Chi-square with fixed seeds; the bound is passed by chance once in ten thousand."""
    count, vocab_size = 20_000, 12
    row = random_logits(1, vocab_size, spread=1.0)
    chosen = params(count, **filters)
    drawn = sampling.draw(row.expand(count, -1).contiguous(), chosen, torch.full((count,), 9))
    settings: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    } | filters
    kept = sorted(kept_by_oracle(row[0].tolist(), **settings))
    probability = (row[0, kept].double() / settings["temperature"]).softmax(0)
    observed = torch.bincount(drawn, minlength=vocab_size)
    assert observed.sum() == observed[kept].sum() == count
    expected = probability * count
    chi_square = ((observed[kept] - expected) ** 2 / expected).sum().item()
    degrees = len(kept) - 1
    # Wilson and Hilferty's approximation of the 0.9999 quantile.
    spread = 2 / (9 * degrees)
    assert chi_square < degrees * (1 - spread + 3.72 * math.sqrt(spread)) ** 3


def test_draw_survives_rows_without_a_distribution() -> None:
    logits = random_logits(4, 50)
    good = sampling.draw(logits[3:], params(1, seed=3 * 7_919), torch.tensor([3]))
    logits[0, 7], logits[1, 7], logits[2] = math.nan, math.inf, NEVER
    drawn = sampling.draw(logits, params(4), torch.arange(4))
    assert ((drawn >= 0) & (drawn < 50)).all()
    assert drawn[3] == good[0]


def test_a_tiny_temperature_is_greedy() -> None:
    logits, position = random_logits(8, 500), torch.arange(8)
    drawn = sampling.draw(logits, params(8, temperature=1e-30), position)
    assert drawn.tolist() == logits.argmax(dim=1).tolist()


def test_argmax_takes_the_lowest_id_among_equals_and_shows_a_nan() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [math.nan, 1.0, 9.0], [1.0, math.nan, math.inf]])
    assert sampling.argmax(logits).tolist() == [1, 0, 1]


@pytest.mark.parametrize("penalties", [(1.3, 0.0, 0.0), (1.0, 0.7, 0.0), (0.8, -0.5, 0.4)])
def test_penalties(penalties: tuple[float, float, float]) -> None:
    repetition, presence, frequency = penalties
    logits, generator = random_logits(5, 30), np.random.default_rng(3)
    tables = PenaltyTables(
        in_prompt=torch.from_numpy(generator.random((9, 30)) < 0.3),
        output_count=torch.from_numpy(generator.integers(0, 3, (9, 30), np.int32)),
    )
    row, slot = torch.tensor([1, 4]), torch.tensor([8, 2])
    expected = logits.clone()
    for r, s in zip(row.tolist(), slot.tolist(), strict=True):
        for token in range(30):
            value = logits[r, token].item()
            count = int(tables.output_count[s, token])
            if tables.in_prompt[s, token] or count:
                value = value / repetition if value > 0 else value * repetition
            expected[r, token] = value - frequency * count - presence * (count > 0)
    columns = torch.tensor(penalties)[:, None].expand(3, 2).contiguous()
    specified = sampling.penalize_specification(logits[row], slot, tables, columns)
    sampling.penalize_(logits, row, slot, tables, columns)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(specified, expected[row])


def test_bias_adds_up_and_minus_infinity_bans() -> None:
    logits = torch.zeros(2, 4)
    row, token = torch.tensor([0, 0, 1]), torch.tensor([2, 2, 3])
    sampling.add_at_(logits, row, token, torch.tensor([1.5, 2.0, NEVER]))
    assert logits.tolist() == [[0.0, 0.0, 3.5, 0.0], [0.0, 0.0, 0.0, NEVER]]


def test_logprobs_ranks_and_alternatives() -> None:
    logits = random_logits(3, 100)
    order = logits.argsort(dim=1, descending=True)
    chosen = torch.stack((order[0, 0], order[1, 9], order[2, 99]))
    found = sampling.token_logprobs(logits, chosen, 5)
    reference = logits.double().log_softmax(dim=1)
    assert found.rank.tolist() == [1, 10, 100]
    assert found.top_token_id.tolist() == order[:, :5].tolist()
    torch.testing.assert_close(
        found.logprob.double(), reference.gather(1, chosen[:, None])[:, 0], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        found.top_logprob.double(), reference.gather(1, order[:, :5]), atol=1e-5, rtol=0
    )


def test_no_alternatives_when_only_the_chosen_token_was_asked_for() -> None:
    found = sampling.token_logprobs(random_logits(2, 10), torch.tensor([4, 5]), 0)
    assert found.top_token_id.shape == (2, 0)
