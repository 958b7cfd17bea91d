"""Each compiled CPU op against the specification, on shapes that no model has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from kernels import attention_cpu, elementwise_cpu, ops, reference
from kernels.batch import AttentionBatch, HeadNorms, RopeTable, Scoring, StepTensors
from kernels.linear import linear, pack_weight

ROWS = (1, 3, 47, 48, 65)  # around the threshold for several threads
PRODUCTS = ("silu_mul", "gelu_tanh_mul")


@dataclass(frozen=True)
class Shape:
    """Heads and blocks of a cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int


SHAPES = (
    Shape(num_heads=1, num_kv_heads=1, head_dim=2, block_size=1),
    Shape(num_heads=6, num_kv_heads=2, head_dim=10, block_size=3),
    Shape(num_heads=5, num_kv_heads=5, head_dim=34, block_size=7),
    Shape(num_heads=9, num_kv_heads=3, head_dim=64, block_size=16),
    Shape(num_heads=8, num_kv_heads=1, head_dim=128, block_size=32),
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_step(
    lengths: Sequence[int], chunks: Sequence[tuple[int, int]], shape: Shape
) -> StepTensors:
    """Decode rows of these context lengths, then chunks of (new tokens, context length).

    Every row's blocks are scattered over the cache.
    """
    contexts = [*lengths, *(length for _, length in chunks)]
    counts = [1] * len(lengths) + [new for new, _ in chunks]
    widths = [-(-length // shape.block_size) for length in contexts]
    shuffled = torch.randperm(sum(widths), generator=torch.Generator().manual_seed(3)) + 1
    table = torch.zeros((len(contexts), max(widths)), dtype=torch.int32)
    for row, (width, blocks) in enumerate(zip(widths, torch.split(shuffled, widths), strict=True)):
        table[row, :width] = blocks
    positions = [torch.arange(n - new, n) for new, n in zip(counts, contexts, strict=True)]
    batch = AttentionBatch(
        token_ids=torch.zeros(sum(counts), dtype=torch.int64),
        positions=torch.cat(positions),
        cu_seqlens=torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        seq_lens=torch.tensor(contexts, dtype=torch.int32),
        block_table=table,
        num_decodes=len(lengths),
        sample_index=torch.tensor([0]),
    )
    frequencies = torch.linspace(1.0, 0.01, shape.head_dim // 2)
    return StepTensors(batch, shape.block_size, RopeTable.build(frequencies, max(contexts)))


def make_cache(step: StepTensors, shape: Shape, seed: int) -> torch.Tensor:
    num_blocks = int(step.batch.block_table.max()) + 1
    return random(num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim, seed=seed)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("hidden", [1, 7, 64, 577])
def test_norms_follow_the_specification(num_rows: int, hidden: int) -> None:
    x, residual, weight = random(num_rows, hidden), random(num_rows, hidden, seed=1), random(hidden)
    expected_residual = residual.clone()
    expected = reference.add_rms_norm(x, expected_residual, weight, 1e-5)
    torch.testing.assert_close(elementwise_cpu.add_rms_norm(x, residual, weight, 1e-5), expected)
    torch.testing.assert_close(residual, expected_residual, rtol=0, atol=0)
    torch.testing.assert_close(
        elementwise_cpu.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)
    )


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [1, 5, 96, 1537])
@pytest.mark.parametrize("product", PRODUCTS)
def test_gated_products_follow_the_specification(product: str, num_rows: int, width: int) -> None:
    gate_up = random(num_rows, 2 * width) * 8
    # In double: in single precision 1 + tanh(g) has few bits left where it is nearly 0.
    expected = getattr(reference, product)(gate_up.double()).float()
    torch.testing.assert_close(getattr(elementwise_cpu, product)(gate_up), expected)


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_of_extremes_are_finite_or_nan_as_they_should_be(product: str) -> None:
    gates = torch.tensor([-1e20, -1e6, -200.0, -88.0, 0.0, 88.0, 200.0, 1e6, float("nan")])
    gate_up = torch.cat((gates, torch.ones(9)))[None]
    got, expected = (getattr(side, product)(gate_up) for side in (elementwise_cpu, reference))
    # At -1e20 what should be 0 is as far from it as e^-88 is.
    torch.testing.assert_close(got, expected, atol=1e-17, rtol=1e-6, equal_nan=True)


def test_a_norms_weight_may_have_more_bits_than_what_it_norms() -> None:
    x, weight = random(3, 64).bfloat16(), 1 + random(64, seed=1) / 100
    exact = reference.rms_norm(x.float(), weight, 1e-5)
    got = reference.rms_norm(x, weight, 1e-5)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.bfloat16())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 50])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_store_writes_what_the_specification_writes(
    num_rows: int, shape: Shape, normed: bool
) -> None:
    step = make_step([3 + row % 9 for row in range(num_rows)], [(4, 6)], shape)
    heads = shape.num_heads + 2 * shape.num_kv_heads
    qkv = random(step.batch.num_tokens, heads * shape.head_dim)
    keys, values = make_cache(step, shape, 1), make_cache(step, shape, 2)
    expected_keys, expected_values = keys.clone(), values.clone()
    weights = random(shape.head_dim, seed=4), random(shape.head_dim, seed=5)
    norms = HeadNorms(*weights, eps=1e-3) if normed else None
    expected = reference.rope_and_store(qkv, step, expected_keys, expected_values, norms)
    query = elementwise_cpu.rope_and_store(qkv, step, keys, values, norms)
    torch.testing.assert_close(query, expected)
    torch.testing.assert_close(keys, expected_keys)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "chunks"),
    [
        ([1], []),
        ([1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 100], []),
        ([300, 1, 64], []),
        ([], [(1, 1)]),
        ([], [(9, 9), (1, 40), (5, 33)]),
        ([7, 19], [(12, 12), (3, 50)]),
    ],
)
@pytest.mark.parametrize("window", [None, 1, 7, 16, 1000])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_attention_follows_the_specification(
    lengths: list[int],
    chunks: list[tuple[int, int]],
    shape: Shape,
    window: int | None,
    softcap: float | None,
) -> None:
    step = make_step(lengths, chunks, shape)
    query = random(step.batch.num_tokens, shape.num_heads, shape.head_dim)
    keys, values = make_cache(step, shape, 1), make_cache(step, shape, 2)
    scoring = Scoring(shape.head_dim**-0.5, window, softcap)
    torch.testing.assert_close(
        attention_cpu.paged_attention(query, keys, values, step, scoring),
        reference.paged_attention(query, keys, values, step, scoring),
        atol=2e-6,
        rtol=2e-5,
    )


@pytest.mark.parametrize(("lengths", "chunks"), [([5, 18, 40], []), ([], [(4, 18), (3, 40)])])
@pytest.mark.parametrize("window", [None, 3, 16, 17])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_what_lies_outside_a_context_or_its_window_is_never_read(
    lengths: list[int],
    chunks: list[tuple[int, int]],
    window: int | None,
    softcap: float | None,
) -> None:
    shape = Shape(num_heads=4, num_kv_heads=2, head_dim=8, block_size=4)
    step = make_step(lengths, chunks, shape)
    query = random(step.batch.num_tokens, shape.num_heads, shape.head_dim)
    keys, values = make_cache(step, shape, 1), make_cache(step, shape, 2)
    scoring = Scoring(0.3, window, softcap)
    expected = reference.paged_attention(query, keys, values, step, scoring)
    counts = step.batch.cu_seqlens.diff().tolist()
    for row, length in enumerate(step.batch.seq_lens.tolist()):
        table = step.batch.block_table[row]
        last = table[(length - 1) // shape.block_size]
        oldest = 0 if window is None else max(0, length - counts[row] - window + 1)
        for cache in (keys, values):
            # A context that fills its last block has nothing beyond it there.
            cache[last, :, (length - 1) % shape.block_size + 1 :] = float("nan")
            cache[table[: oldest // shape.block_size].long()] = float("nan")
    got = attention_cpu.paged_attention(query, keys, values, step, scoring)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("window", [None, 6])
def test_rows_may_name_their_slots_tables(window: int | None) -> None:
    shape = SHAPES[1]
    step = make_step([4, 17, 9], [(5, 20)], shape)
    batch, slots = step.batch, torch.tensor([5, 0, 3, 2], dtype=torch.int32)
    tables = torch.full((6, batch.block_table.shape[1]), -1, dtype=torch.int32)
    tables[slots.long()] = batch.block_table
    by_slot = replace(step, batch=replace(batch, block_table=tables, row_slot=slots), memo={})
    qkv = random(batch.num_tokens, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim)
    results = []
    for side in (step, by_slot):
        keys, values = make_cache(step, shape, 1), make_cache(step, shape, 2)
        query = elementwise_cpu.rope_and_store(qkv, side, keys, values)
        attended = attention_cpu.paged_attention(query, keys, values, side, Scoring(0.3, window))
        results.append((attended, keys, values))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_large_scores_do_not_overflow() -> None:
    shape = Shape(num_heads=2, num_kv_heads=1, head_dim=4, block_size=4)
    step = make_step([9, 1], [], shape)
    query = random(2, 2, 4) * 1e4
    keys, values = make_cache(step, shape, 1), make_cache(step, shape, 2)
    got = attention_cpu.paged_attention(query, keys, values, step, Scoring(0.5))
    expected = reference.paged_attention(query, keys, values, step, Scoring(0.5))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_row_attends_alike_alone_and_among_others() -> None:
    shape = SHAPES[3]
    step = make_step([37, 5, 260], [], shape)
    query = random(3, shape.num_heads, shape.head_dim)
    keys, values = make_cache(step, shape, 1), make_cache(step, shape, 2)
    together = attention_cpu.paged_attention(query, keys, values, step, Scoring(0.125))
    whole = step.batch
    for row in range(3):
        alone = AttentionBatch(
            token_ids=whole.token_ids[row : row + 1],
            positions=whole.positions[row : row + 1],
            cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
            seq_lens=whole.seq_lens[row : row + 1],
            block_table=whole.block_table[row : row + 1],
            num_decodes=1,
            sample_index=torch.tensor([0]),
        )
        single = StepTensors(alone, shape.block_size, step.rope)
        got = attention_cpu.paged_attention(
            query[row : row + 1], keys, values, single, Scoring(0.125)
        )
        assert torch.equal(got[0], together[row])


@pytest.mark.parametrize("num_rows", [1, 8, 33])
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (7, 5), (96, 64), (101, 576)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_packed_weight_multiplies_like_a_plain_one(
    num_rows: int, out_features: int, in_features: int, with_bias: bool
) -> None:
    weight, x = random(out_features, in_features), random(num_rows, in_features, seed=1)
    bias = random(out_features, seed=2) if with_bias else None
    exact = x.double() @ weight.double().T
    expected = exact if bias is None else exact + bias
    got = linear(x, pack_weight(weight), bias)
    torch.testing.assert_close(got, expected.float(), atol=1e-5 * in_features**0.5, rtol=1e-5)


def test_compiled_ops_are_for_float32_on_a_cpu_only() -> None:
    cpu = torch.device("cpu")
    assert ops.select(cpu, torch.float32).silu_mul is elementwise_cpu.silu_mul
    assert ops.select(cpu, torch.float32).gelu_tanh_mul is elementwise_cpu.gelu_tanh_mul
    assert ops.select(cpu, torch.bfloat16) is ops.REFERENCE
