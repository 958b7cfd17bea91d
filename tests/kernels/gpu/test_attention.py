"""Paged attention in Triton against the specification, with NaN wherever no row may look."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from kernels import reference
from kernels.batch import AttentionBatch, RopeTable, Scoring, StepTensors
from kernels.gpu import attention, tiling
from kernels.gpu.tiling import AMPERE, HOPPER, Tiling
from tests.kernels.gpu.conftest import INTERPRETED
from tests.kernels.gpu.guarded import Guarded, random

FLOAT8 = torch.float8_e4m3fn
# Of the order of a sum, and of one rounding of the weights and one of the outcome. A GPU's exp2 is
# good to two units in the last place, and each of its sums is in an order of its own.
TOLERANCE = {
    torch.float32: 2e-6 if INTERPRETED else 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
NAN = float("nan")

needs_float8 = pytest.mark.skipif(
    not INTERPRETED and torch.cuda.get_device_capability() < (8, 9), reason="has no float8"
)


@dataclass(frozen=True)
class Heads:
    """Of a layer and its cache."""

    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 64
    block_size: int = 16


@dataclass(frozen=True)
class Rows:
    """A step: context lengths of decodes, then chunks as (new tokens, context length)."""

    decodes: Sequence[int] = ()
    chunks: Sequence[tuple[int, int]] = ()

    @property
    def contexts(self) -> list[int]:
        return [*self.decodes, *(length for _, length in self.chunks)]

    @property
    def counts(self) -> list[int]:
        return [1] * len(self.decodes) + [new for new, _ in self.chunks]


def make_step(rows: Rows, block_size: int, device: torch.device) -> StepTensors:
    """Every row has a table, its blocks scattered over the cache; block 0 is nobody's."""
    contexts, counts = rows.contexts, rows.counts
    widths = [-(-length // block_size) for length in contexts]
    shuffled = torch.randperm(sum(widths), generator=torch.Generator().manual_seed(3)) + 1
    table = torch.zeros((len(contexts), max(widths)), dtype=torch.int32)
    for row, (width, blocks) in enumerate(zip(widths, torch.split(shuffled, widths), strict=True)):
        table[row, :width] = blocks
    positions = [torch.arange(n - new, n) for new, n in zip(counts, contexts, strict=True)]
    batch = AttentionBatch(
        token_ids=torch.zeros(sum(counts), dtype=torch.int32, device=device),
        positions=torch.cat(positions).int().to(device),
        cu_seqlens=torch.tensor([0, *counts]).cumsum(0).int().to(device),
        seq_lens=torch.tensor(contexts).int().to(device),
        block_table=table.to(device),
        num_decodes=len(rows.decodes),
        sample_index=torch.tensor([0], device=device),
    )
    nowhere = torch.zeros(1, 1, device=device)
    return StepTensors(batch, block_size, RopeTable(nowhere, nowhere))


def readable(step: StepTensors, num_blocks: int, window: int | None) -> torch.Tensor:
    """Which places of the cache some token sees, [num_blocks, block_size] bool."""
    batch = step.batch
    seen = torch.zeros(num_blocks * step.block_size, dtype=torch.bool)
    starts = batch.cu_seqlens.tolist()
    for row, length in enumerate(batch.seq_lens.tolist()):
        oldest = length - (starts[row + 1] - starts[row])
        positions = torch.arange(0 if window is None else max(0, oldest - window + 1), length)
        blocks = batch.row_tables[row].cpu()[positions // step.block_size].long()
        seen[blocks * step.block_size + positions % step.block_size] = True
    return seen.view(num_blocks, step.block_size)


def make_cache(
    step: StepTensors, heads: Heads, window: int | None, dtype: torch.dtype, seed: int
) -> torch.Tensor:
    """Numbers where some token looks, NaN everywhere else."""
    table = step.batch.block_table
    num_blocks = int(table.max()) + 2
    shape = (num_blocks, heads.num_kv_heads, heads.block_size, heads.head_dim)
    cache = random(*shape, seed=seed, device=torch.device("cpu"))
    cache = cache.masked_fill(~readable(step, num_blocks, window)[:, None, :, None], NAN)
    return cache.to(dtype).to(table.device)


def check(
    rows: Rows | StepTensors,
    device: torch.device,
    heads: Heads = Heads(),
    dtype: torch.dtype = torch.float32,
    scoring: Scoring | None = None,
) -> torch.Tensor:
    """Asserts that the kernels do what the specification says; returns what they gave."""
    step = make_step(rows, heads.block_size, device) if isinstance(rows, Rows) else rows
    scoring = scoring or Scoring(heads.head_dim**-0.5)
    shape = (step.batch.num_tokens, heads.num_heads, heads.head_dim)
    query = Guarded(random(*shape, dtype=dtype, device=device))
    keys = Guarded(make_cache(step, heads, scoring.window, dtype, seed=1))
    values = Guarded(make_cache(step, heads, scoring.window, dtype, seed=2))
    out = attention.paged_attention(query.tensor, keys.tensor, values.tensor, step, scoring)
    assert out.dtype == dtype
    expected = reference.paged_attention(
        query.tensor.float(),
        keys.tensor.float().nan_to_num(),
        values.tensor.float().nan_to_num(),
        step,
        scoring,
    )
    close(out, expected, dtype)
    assert all(tensor.untouched() for tensor in (query, keys, values))
    return out


def close(out: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> "Launch":
    return Launch(monkeypatch, device)


@dataclass(frozen=True)
class Launch:
    """Decides what the host functions decide from shapes."""

    monkeypatch: pytest.MonkeyPatch
    device: torch.device

    def splits(self, count: int) -> None:
        self.monkeypatch.setattr(tiling, "num_splits", lambda *_: count)

    def block_m(self, rows: int) -> None:
        """Of chunks."""
        chosen = tiling.chunk_tiling(tiling.gpu_of(self.device), 1, 1, 1, 1, 64, torch.float16)
        self.monkeypatch.setattr(tiling, "chunk_tiling", lambda *_: chosen._replace(block_m=rows))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("block_size", [8, 16, 24])
def test_decodes_around_the_edges_of_blocks_and_tiles(
    block_size: int, splits: int, launch: Launch, device: torch.device
) -> None:
    launch.splits(splits)
    lengths = [1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 63, 64, 65, 123]
    check(Rows(lengths), device, Heads(block_size=block_size))


@pytest.mark.parametrize("splits", [1, 16])
def test_decodes_of_one_token_and_of_many_tiles(
    splits: int, launch: Launch, device: torch.device
) -> None:
    launch.splits(splits)
    check(Rows([300, 1, 257]), device, dtype=torch.float16)


@pytest.mark.parametrize("rows", [Rows([19, 64]), Rows(chunks=[(17, 17), (3, 40)])], ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (6, 2), (8, 2), (8, 1), (17, 1)])
def test_groups_of_any_size(
    num_heads: int, num_kv_heads: int, rows: Rows, device: torch.device
) -> None:
    check(rows, device, Heads(num_heads, num_kv_heads))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 96, 128, 256])
def test_head_sizes_and_types(head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    check(Rows([70, 5], [(9, 80)]), device, Heads(6, 2, head_dim), dtype)


@pytest.mark.parametrize("block_m", [16, 64, 128])
@pytest.mark.parametrize(
    "chunks",
    [
        [(1, 1)],
        [(17, 17)],
        [(123, 123)],
        [(17, 123), (1, 64), (2, 65), (33, 200)],
        [(4, 4), (0, 5), (16, 32), (0, 1), (0, 1)],
        [(16, 16), (16, 48), (16, 65)],
    ],
    ids=str,
)
def test_chunks_in_blocks_of_any_height(
    chunks: list[tuple[int, int]], block_m: int, launch: Launch, device: torch.device
) -> None:
    launch.block_m(block_m)
    check(Rows(chunks=chunks), device, dtype=torch.float16)
    check(Rows(chunks=chunks), device, Heads(3, 1, block_size=8), torch.float16)


@pytest.mark.parametrize("splits", [1, 2])
def test_decodes_and_chunks_together(splits: int, launch: Launch, device: torch.device) -> None:
    launch.splits(splits)
    check(Rows([7, 90], [(12, 12), (40, 70), (1, 17), (0, 3)]), device, Heads(6, 2))


def test_a_decode_may_also_stand_among_the_chunks(device: torch.device) -> None:
    rows = Rows([], [(1, 40), (1, 129), (20, 20)])
    assert make_step(rows, 16, device).batch.num_decodes == 0
    check(rows, device)


@pytest.mark.parametrize("window", [1, 2, 15, 16, 63, 64, 65, 100, 1000])
def test_a_window_hides_what_lies_before_it(
    window: int, launch: Launch, device: torch.device
) -> None:
    scoring = Scoring(0.1, window=window)
    launch.splits(2)
    check(Rows([200, 64, 65, 1]), device, scoring=scoring)
    for block_m in (16, 64):
        launch.block_m(block_m)
        check(Rows(chunks=[(50, 190), (17, 17)]), device, dtype=torch.float16, scoring=scoring)


@pytest.mark.parametrize("window", [None, 40])
def test_a_soft_cap_bounds_the_products(window: int | None, device: torch.device) -> None:
    scoring = Scoring(2.0, window=window, softcap=5.0)
    check(Rows([70, 3], [(20, 90)]), device, scoring=scoring)


def test_rows_may_name_their_table(device: torch.device) -> None:
    heads = Heads(6, 2)
    step = make_step(Rows([20, 40], [(5, 70)]), heads.block_size, device)
    slots = torch.tensor([4, 0, 2], dtype=torch.int32, device=device)
    tables = torch.zeros(6, step.batch.block_table.shape[1], dtype=torch.int32, device=device)
    tables[slots.long()] = step.batch.block_table
    named = replace(step, batch=replace(step.batch, block_table=tables, row_slot=slots))
    assert torch.equal(check(named, device, heads), check(step, device, heads))


@pytest.mark.parametrize("splits", [1, 3])
def test_masked_rows_look_at_the_null_block_and_harm_nobody(
    splits: int, launch: Launch, device: torch.device
) -> None:
    launch.splits(splits)
    heads, scoring = Heads(), Scoring(0.125)
    step = make_step(Rows([70, 1, 30, 1]), heads.block_size, device)
    step.batch.block_table[[1, 3]] = 0
    query = random(4, heads.num_heads, heads.head_dim, device=device)
    keys = make_cache(step, heads, None, torch.float32, seed=1)
    values = make_cache(step, heads, None, torch.float32, seed=2)
    healthy = attention.paged_attention(query, keys, values, step, scoring)
    assert healthy.isfinite().all()
    assert torch.equal(healthy[1], values[0, 0, 0].repeat(heads.num_heads))
    keys[0] = values[0] = NAN
    ill = attention.paged_attention(query, keys, values, step, scoring)
    assert torch.equal(ill[[0, 2]], healthy[[0, 2]])


@pytest.mark.parametrize("rows", [Rows([33], [(5, 20), (0, 1), (0, 1)]), Rows([33, 4])], ids=str)
def test_tokens_that_no_row_owns_are_passed_over(rows: Rows, device: torch.device) -> None:
    heads, scoring, count = Heads(), Scoring(0.125), sum(rows.counts)
    step = make_step(rows, heads.block_size, device)
    keys = make_cache(step, heads, None, torch.float32, seed=1)
    values = make_cache(step, heads, None, torch.float32, seed=2)
    query = random(64, heads.num_heads, heads.head_dim, device=device)
    own = attention.paged_attention(query[:count].clone(), keys, values, step, scoring)
    padded = replace(step.batch, token_ids=torch.zeros(64, dtype=torch.int32, device=device))
    out = attention.paged_attention(query, keys, values, replace(step, batch=padded), scoring)
    close(out[:count], own, torch.float32)
    assert out[count:].isnan().all(), "nothing was written"


@pytest.mark.parametrize("splits", [1, 3])
def test_a_row_gets_the_same_bits_alone_and_among_others(
    splits: int, launch: Launch, device: torch.device
) -> None:
    launch.splits(splits)
    launch.block_m(64)
    heads, scoring, dtype = Heads(6, 2), Scoring(0.125), torch.bfloat16
    step = make_step(Rows([37, 5, 150], [(30, 100), (3, 40)]), heads.block_size, device)
    query = random(step.batch.num_tokens, 6, 64, dtype=dtype, device=device)
    keys = make_cache(step, heads, None, dtype, seed=1)
    values = make_cache(step, heads, None, dtype, seed=2)
    together = attention.paged_attention(query, keys, values, step, scoring)
    starts = step.batch.cu_seqlens.tolist()
    for row in range(5):
        tokens = slice(starts[row], starts[row + 1])
        alone = AttentionBatch(
            token_ids=step.batch.token_ids[tokens],
            positions=step.batch.positions[tokens],
            cu_seqlens=step.batch.cu_seqlens[row : row + 2] - starts[row],
            seq_lens=step.batch.seq_lens[row : row + 1],
            block_table=step.batch.block_table[row : row + 1],
            num_decodes=int(row < 3),
            sample_index=step.batch.sample_index,
        )
        single = replace(step, batch=alone)
        out = attention.paged_attention(query[tokens].clone(), keys, values, single, scoring)
        assert torch.equal(out, together[tokens])


@needs_float8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [96, 128])
def test_a_cache_of_float8_is_scaled(
    head_dim: int, dtype: torch.dtype, launch: Launch, device: torch.device
) -> None:
    launch.splits(2)
    heads, scoring = Heads(8, 2, head_dim), Scoring(head_dim**-0.5, softcap=20.0)
    step = make_step(Rows([70, 20], [(20, 90)]), heads.block_size, device)
    query = random(step.batch.num_tokens, 8, head_dim, dtype=dtype, device=device)
    keys = make_cache(step, heads, None, FLOAT8, seed=1)
    values = make_cache(step, heads, None, FLOAT8, seed=2)
    out = attention.paged_attention(query, keys, values, step, scoring, 1.5, 0.25)
    wide_keys, wide_values = keys.float().nan_to_num() * 1.5, values.float().nan_to_num() * 0.25
    expected = reference.paged_attention(query.float(), wide_keys, wide_values, step, scoring)
    close(out, expected, dtype)


def test_large_products_do_not_overflow(device: torch.device) -> None:
    heads, scoring = Heads(), Scoring(1e4)
    step = make_step(Rows([66], [(20, 40)]), heads.block_size, device)
    query = random(21, 4, 64, dtype=torch.float16, device=device)
    keys = make_cache(step, heads, None, torch.float16, seed=1)
    values = make_cache(step, heads, None, torch.float16, seed=2)
    out = attention.paged_attention(query, keys, values, step, scoring)
    clean = (keys.float().nan_to_num(), values.float().nan_to_num())
    close(out, reference.paged_attention(query.float(), *clean, step, scoring), torch.float16)


@pytest.mark.skipif(INTERPRETED, reason="captures a graph")
def test_a_graph_replays_with_other_rows(device: torch.device) -> None:
    heads, scoring, dtype = Heads(8, 2, 128), Scoring(0.1), torch.bfloat16
    first = make_step(Rows([300, 20], [(40, 90), (8, 200)]), heads.block_size, device)
    later = make_step(Rows([2, 299], [(3, 200), (45, 80)]), heads.block_size, device)
    static = make_step(Rows([300, 20], [(40, 90), (8, 200)]), heads.block_size, device)
    query = random(50, 8, 128, dtype=dtype, device=device)
    keys = random(60, 2, 16, 128, seed=1, dtype=dtype, device=device)
    values = random(60, 2, 16, 128, seed=2, dtype=dtype, device=device)
    attention.paged_attention(query, keys, values, static, scoring)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention.paged_attention(query, keys, values, static, scoring)
    for step in (later, first):
        for name in ("cu_seqlens", "seq_lens", "block_table"):
            getattr(static.batch, name).copy_(getattr(step.batch, name))
        graph.replay()
        expected = reference.paged_attention(query, keys, values, step, scoring)
        close(out, expected.float(), dtype)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    step = make_step(Rows([5]), 16, device)
    query, cache = torch.zeros(1, 4, 64, device=device), torch.zeros(2, 2, 16, 64, device=device)
    attend, scoring = attention.paged_attention, Scoring(1.0)
    with pytest.raises(ValueError, match=r"values has shape .*; it must be \(2, 2, 16, 64\)"):
        attend(query, cache, cache[:1], step, scoring)
    with pytest.raises(ValueError, match="query has 4 heads; keys have 3, no divisor of it"):
        attend(query, torch.zeros(2, 3, 16, 64, device=device), cache, step, scoring)
    with pytest.raises(ValueError, match="head_dim is 72; it must be a multiple of 16, at most"):
        attend(torch.zeros(1, 4, 72, device=device), cache, cache, step, scoring)
    with pytest.raises(ValueError, match="keys have blocks of 16 tokens; the step's have 8"):
        attend(query, cache, cache, replace(step, block_size=8), scoring)
    with pytest.raises(ValueError, match="keys is float16; it must be float32"):
        attend(query, cache.half(), cache.half(), step, scoring)
    with pytest.raises(ValueError, match="window is 0; a token sees at least itself"):
        attend(query, cache, cache, step, Scoring(1.0, window=0))
    with pytest.raises(ValueError, match=r"scale is -1.0; it must be above 0"):
        attend(query, cache, cache, step, Scoring(-1.0))


def test_a_device_without_float8_refuses_it(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(tiling, "gpu_of", lambda _: AMPERE)
    step, query = make_step(Rows([5]), 16, device), torch.zeros(1, 4, 64, device=device)
    cache = torch.zeros(2, 2, 16, 64, device=device).to(FLOAT8)
    with pytest.raises(ValueError, match="keys is float8_e4m3fn; it must be float32"):
        attention.paged_attention(query, cache, cache, step, Scoring(1.0))


@pytest.mark.parametrize(
    ("num_rows", "num_kv_heads", "splits"),
    [(1, 8, 16), (4, 8, 8), (16, 8, 2), (32, 8, 1), (256, 8, 1), (1, 1, 16), (64, 1, 4)],
)
def test_decodes_are_split_until_the_device_is_full(
    num_rows: int, num_kv_heads: int, splits: int
) -> None:
    assert tiling.num_splits(HOPPER, num_rows, num_kv_heads) == splits


@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "block_m"),
    [
        (8192, 1, 128),
        (2048, 1, 128),
        (300, 1, 64),  # taller blocks would leave multiprocessors idle
        (128, 1, 16),
        (2048, 64, 128),
        (2048, 128, 64),  # taller blocks would be half empty
        (2048, 256, 16),
    ],
)
def test_chunks_are_as_tall_as_rows_are_long_and_as_the_device_is_wide(
    num_tokens: int, num_rows: int, block_m: int
) -> None:
    chosen = tiling.chunk_tiling(HOPPER, num_tokens, num_rows, 32, 4, 128, torch.bfloat16)
    assert chosen == Tiling(block_m, tile=64, num_warps=8 if block_m == 128 else 4, num_stages=3)


def test_tiles_shrink_with_wide_heads_and_small_devices() -> None:
    tiles = {
        (gpu, head_dim): tiling.decode_tiling(gpu, 4, head_dim, torch.bfloat16).tile
        for gpu in (HOPPER, AMPERE)
        for head_dim in (64, 96, 128, 256)
    }
    assert [tiles[HOPPER, dim] for dim in (64, 96, 128, 256)] == [64, 64, 64, 32]
    assert [tiles[AMPERE, dim] for dim in (64, 96, 128, 256)] == [64, 32, 32, 16]
