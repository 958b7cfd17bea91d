"""The sampler in Triton against `kernels.step_sampling`, and its noise against `kernels.philox`."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from kernels import step_sampling
from kernels.gpu import sampler
from kernels.gpu.sampler_tiles import Tiles
from kernels.step_sampling import ERROR, LENGTH, STOP, GrammarMasks, num_words, packed
from kernels.step_tables import SlotSampling, SlotTables

# numpy, which interprets, warns of what a GPU computes in silence: ∞ - ∞ in rows without logits.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

MAX_MODEL_LEN = 40
NEVER = -math.inf
GARBAGE = -77

Settings = dict[str, Any]


@dataclass
class Step:
    """A step's rows and everything it may read or write; row r samples for slot r, or for none."""

    logits: torch.Tensor
    slot: torch.Tensor
    new_position: torch.Tensor
    sampling: SlotSampling
    slots: SlotTables
    grammar: GrammarMasks | None = None
    token_id: torch.Tensor = field(init=False)
    finish: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.token_id = torch.full_like(self.slot, GARBAGE)
        self.finish = torch.full_like(self.slot, GARBAGE)

    def run(self, function: Callable[..., None], *more: Any) -> None:
        batch = (self.logits, self.slot, self.new_position, self.sampling, self.slots)
        function(*batch, self.token_id, self.finish, *more, self.grammar)


def random_logits(num_rows: int, vocab_size: int, spread: float = 3.0, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed * 999_983 + num_rows * 1000 + vocab_size)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def step(
    logits: torch.Tensor,
    rows: Sequence[Settings],
    *,
    num_stops: int = 3,
    num_biased: int = 5,
    device: torch.device,
) -> Step:
    """One row for each of the settings; what they do not name is off."""
    vocab_size, num_slots = logits.shape[1], len(rows) + 1
    defaults: dict[str, tuple[float, torch.dtype]] = {
        "temperature": (0.0, torch.float32),
        "top_k": (0, torch.int32),
        "top_p": (1.0, torch.float32),
        "min_p": (0.0, torch.float32),
        "seed": (0, torch.int64),
        "repetition": (1.0, torch.float32),
        "presence": (0.0, torch.float32),
        "frequency": (0.0, torch.float32),
        "ban_until": (0, torch.int32),
        "limit": (MAX_MODEL_LEN, torch.int32),
        "invalid": (0, torch.int32),
    }
    columns = {
        name: torch.full((num_slots,), value, dtype=dtype)
        for name, (value, dtype) in defaults.items()
    }
    stop_ids = torch.full((num_slots, num_stops), -1, dtype=torch.int32)
    bias_ids = torch.full((num_slots, num_biased), -1, dtype=torch.int32)
    bias = torch.zeros(num_slots, num_biased)
    in_prompt = torch.zeros(num_slots, vocab_size, dtype=torch.bool)
    output_count = torch.zeros(num_slots, vocab_size, dtype=torch.int32)
    allowed = torch.zeros(num_slots, vocab_size, dtype=torch.bool)
    constrained = torch.zeros(num_slots, dtype=torch.int32)
    done = torch.zeros(num_slots, dtype=torch.int32)
    new_position = torch.arange(len(rows), dtype=torch.int32) % 20 + 7
    slot = torch.arange(len(rows), dtype=torch.int32)
    for row, settings in enumerate(rows):
        for name, value in settings.items():
            match name:
                case "stop_ids":
                    stop_ids[row, : len(value)] = torch.tensor(value)
                case "bias":
                    bias_ids[row, : len(value)] = torch.tensor(list(value))
                    bias[row, : len(value)] = torch.tensor(list(value.values()))
                case "prompt":
                    in_prompt[row, torch.tensor(value) % vocab_size] = True
                case "output":
                    for token in value:
                        output_count[row, token % vocab_size] += 1
                case "allowed":
                    constrained[row] = 1
                    allowed[row, torch.tensor(value, dtype=torch.int64) % vocab_size] = True
                case "done":
                    done[row] = value
                case "padding":
                    slot[row] = len(rows)
                case "new_position":
                    new_position[row] = value
                case _:
                    columns[name][row] = value
    tables = {"stop_ids": stop_ids, "bias_ids": bias_ids, "bias": bias}
    tables |= {"in_prompt": packed(in_prompt), "output_count": output_count}
    zeros = torch.zeros(num_slots, 1, dtype=torch.int32)
    sequences = {"tokens": torch.full((num_slots, MAX_MODEL_LEN + 1), GARBAGE, dtype=torch.int32)}
    sequences |= {"blocks": zeros, "position": zeros[:, 0].clone(), "done": done}
    masks = {"constrained": constrained, "allowed": packed(allowed)}
    return Step(
        # Beyond the vocabulary there is nothing that may be read.
        torch.nn.functional.pad(logits, (0, 9), value=math.nan).to(device)[:, :vocab_size],
        slot.to(device),
        new_position.to(device),
        SlotSampling(**{name: v.to(device) for name, v in (columns | tables).items()}),
        SlotTables(**{name: v.to(device) for name, v in sequences.items()}),
        GrammarMasks(**{name: v.to(device) for name, v in masks.items()}),
    )


def poisoned_tiles(num_rows: int, vocab_size: int, device: torch.device) -> Tiles:
    tiles = Tiles.empty(num_rows + 1, vocab_size, device)
    return Tiles(*(tile.fill_(math.nan if tile.is_floating_point() else GARBAGE) for tile in tiles))


def check(given: Step) -> Step:
    """Runs the kernels; their whole outcome is the specification's."""
    specified, raw = copy.deepcopy(given), given.logits.clone()
    specified.run(step_sampling.sample_and_commit)
    given.run(sampler.sample_and_commit, poisoned_tiles(len(raw), raw.shape[1], raw.device))
    assert given.token_id.tolist() == specified.token_id.tolist()
    assert given.finish.tolist() == specified.finish.tolist()
    for name, table in vars(given.slots).items():
        assert torch.equal(table, getattr(specified.slots, name)), name
    for name, table in vars(given.sampling).items():
        assert torch.equal(table, getattr(specified.sampling, name)), name
    torch.testing.assert_close(given.logits, raw, rtol=0, atol=0, equal_nan=True)
    return given


PLAIN: list[Settings] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "seed": -1},
    {"temperature": 1e-30},
]
FILTERED: list[Settings] = [
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 2.0, "top_k": 7, "seed": 3},
    {"temperature": 1.0, "top_k": 100_000},
    {"temperature": 1.3, "top_p": 0.1, "seed": 4},
    {"temperature": 1.0, "top_p": 0.9, "seed": 9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 1.0, "seed": 8},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "seed": 7},
    {"temperature": 1.9, "top_k": 40, "top_p": 0.5, "min_p": 0.01, "seed": 1},
]
ADJUSTED: list[Settings] = [
    {"bias": {0: 90.0, 3: -100.0, 96: 99.0, 4098: 99.5, 100_000: 100.0}},
    {"temperature": 1.0, "bias": {2: 4.0, 999: 4.0}, "seed": 6},
    {"ban_until": 1000, "stop_ids": [0, 4098, 96], "bias": {0: 90.0}},
    {"ban_until": 5, "stop_ids": [0, 4098, 96], "bias": {0: 90.0}},
    {"repetition": 1.7, "prompt": range(0, 5000, 2), "output": [1, 1, 5, 4097]},
    {"repetition": 0.4, "presence": -1.5, "frequency": 1.2, "output": range(0, 3000, 3)},
    {"temperature": 1.0, "presence": 2.0, "output": range(1000), "top_k": 5},
    {"allowed": [3]},
    {"temperature": 1.0, "allowed": [3, 31, 32, 64, 4098], "top_p": 0.8, "seed": 12},
    {"temperature": 1.0, "allowed": range(0, 5000, 3), "bias": {1: 100.0}},
]
OTHERS: list[Settings] = [
    {"done": 1, "temperature": 1.0, "top_k": 3},
    {"padding": True},
    {"invalid": 1},
    {"limit": 8, "new_position": 7},
    {"temperature": 1.0, "limit": 8, "new_position": 6},
    {"allowed": []},
    {"temperature": 1.0, "allowed": [], "top_p": 0.5},
]


@pytest.mark.parametrize("kinds", [PLAIN + OTHERS, FILTERED, ADJUSTED], ids=len)
@pytest.mark.parametrize("vocab_size", [1, 5, 97, 1000, 4099])
def test_rows_of_every_kind(kinds: list[Settings], vocab_size: int, device: torch.device) -> None:
    check(step(random_logits(len(kinds), vocab_size), kinds, device=device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_tie_often_and_the_lowest_id_wins(
    dtype: torch.dtype, device: torch.device
) -> None:
    kinds = [*PLAIN, *FILTERED, *ADJUSTED]
    check(step(random_logits(len(kinds), 1500).to(dtype), kinds, device=device))


TIED: list[Settings] = [
    {},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 2},
    {"temperature": 0.3, "top_k": 11, "seed": 3},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 1.0, "top_p": 0.003, "seed": 2},
    {"temperature": 1.0, "top_k": 1500, "top_p": 0.501, "seed": 1},
    {"temperature": 1.7, "top_k": 2000, "top_p": 0.3, "seed": 4},
]


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_are_cut_at_the_lowest_ids(levels: int, device: torch.device) -> None:
    logits = random_logits(len(TIED), 2500).abs().round() % levels
    check(step(logits, TIED, device=device))


@pytest.mark.parametrize("seed", range(3))
def test_flat_rows_reject_many_draws(seed: int, device: torch.device) -> None:
    """The filters keep next to nothing of what is likely to be drawn."""
    kinds: list[Settings] = [
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 2.0, "top_p": 0.002},
        {"temperature": 1.0, "top_k": 900, "top_p": 0.3},
        {"temperature": 1.0, "top_k": 100, "top_p": 0.97, "min_p": 0.0004},
        {"temperature": 1.5, "top_k": 2, "top_p": 0.51},
    ]
    kinds = [settings | {"seed": seed * 31 + i} for i, settings in enumerate(kinds)]
    check(step(random_logits(len(kinds), 4099, 0.2, seed), kinds, device=device))


def test_logits_that_are_not_finite_end_the_sequence(device: torch.device) -> None:
    kinds: list[Settings] = []
    for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 4, "top_p": 0.9}):
        kinds += [dict(settings) for _ in range(6)]
    logits = random_logits(len(kinds), 2100)
    for start in (0, 6, 12):
        logits[start, 2060] = math.nan
        logits[start + 1, 3] = math.inf
        logits[start + 2] = NEVER
        logits[start + 3, 10:] = NEVER
        logits[start + 4, :2080] = NEVER
    # A stop token's ban does not hide it, nor does the grammar.
    kinds[6] |= {"stop_ids": [2060], "ban_until": 99}
    kinds[0] |= {"allowed": [5, 6]}
    finish = check(step(logits, kinds, device=device)).finish.tolist()
    assert finish == [ERROR, ERROR, ERROR, 0, 0, 0] * 3


def test_stop_outranks_length_and_error_both(device: torch.device) -> None:
    logits = torch.zeros(5, 50)
    logits[:, 17] = 4.0
    last: Settings = {"limit": 8, "new_position": 7}
    kinds = [
        {"stop_ids": [3, 17]},
        last,
        last | {"stop_ids": [17]},
        last | {"stop_ids": [17], "invalid": 1},
        {"stop_ids": [17, 40], "ban_until": 12, "new_position": 11},
    ]
    done = check(step(logits, kinds, device=device))
    assert done.finish.tolist() == [STOP, LENGTH, STOP, ERROR, 0]
    assert done.token_id.tolist() == [17, 17, 17, 17, 0]
    assert done.slots.done.tolist() == [1, 1, 1, 1, 0, 0]


def test_long_lists_are_read_to_their_ends(device: torch.device) -> None:
    biased = {token: 50.0 + token / 8 for token in range(299, -1, -1)}
    kinds: list[Settings] = [
        {"bias": biased, "stop_ids": list(range(400, 400 - 201, -1))},
        {"bias": biased, "stop_ids": list(range(100, 301)), "ban_until": 1000},
        {"bias": {299: 60.0}, "stop_ids": [*range(200), 299]},
    ]
    given = step(torch.zeros(3, 500), kinds, num_stops=201, num_biased=300, device=device)
    done = check(given)
    assert done.token_id.tolist() == [299, 99, 299]
    assert done.finish.tolist() == [STOP, 0, STOP]


def test_tables_without_columns_are_not_read(device: torch.device) -> None:
    kinds = PLAIN + FILTERED
    check(step(random_logits(len(kinds), 60), kinds, num_stops=0, num_biased=0, device=device))


def test_what_was_said_is_penalized_in_the_next_step(device: torch.device) -> None:
    given = step(torch.zeros(2, 7), [{"frequency": 0.5}, {}], device=device)
    said = []
    for position in range(4):
        given.new_position.fill_(position)
        said.append(check(given).token_id.tolist())
    assert said == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert given.slots.tokens[:2, :4].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]


def test_rows_without_a_grammar_table(device: torch.device) -> None:
    kinds = PLAIN + FILTERED
    given = step(random_logits(len(kinds), 97), kinds, device=device)
    given.grammar = None
    check(given)


def test_no_rows(device: torch.device) -> None:
    check(step(torch.empty(0, 10), [], device=device))


def test_the_host_function_names_what_does_not_fit(device: torch.device) -> None:
    def run(given: Step, tiles: Tiles | None = None) -> None:
        tiles = tiles or Tiles.empty(4, given.logits.shape[1], device)
        given.run(sampler.sample_and_commit, tiles)

    def given() -> Step:
        return step(torch.zeros(2, 64), [{}, {}], device=device)

    other = given()
    other.logits = torch.zeros(64, 2, device=device).T
    with pytest.raises(ValueError, match="a row must be contiguous"):
        run(other)
    other = given()
    other.slot = other.slot[:1]
    with pytest.raises(ValueError, match=r"slot has shape \(1,\); the logits have 2 rows"):
        run(other)
    other = given()
    other.logits = torch.zeros(2, 63, device=device)
    with pytest.raises(ValueError, match="64 columns; the vocabulary has 63 tokens"):
        run(other)
    other = given()
    assert other.grammar is not None
    other.grammar = GrammarMasks(other.grammar.constrained, other.grammar.allowed[:, :1])
    with pytest.raises(ValueError, match="1 words; the vocabulary needs 2"):
        run(other)
    with pytest.raises(ValueError, match="tiles have shape"):
        run(given(), Tiles.empty(1, 64, device))


def test_the_ledger_knows_what_tables_take() -> None:
    tiles = Tiles.empty(3, 5000, torch.device("cpu"))
    assert Tiles.num_bytes(3, 5000) == sum(tile.nbytes for tile in tiles)
    masks = GrammarMasks.empty(3, 5000, torch.device("cpu"))
    assert GrammarMasks.num_bytes(3, 5000) == masks.constrained.nbytes + masks.allowed.nbytes
    assert masks.allowed.shape == (3, num_words(5000))
