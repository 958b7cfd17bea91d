"""Head norms, rotation and cache writes in Triton against the specification."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from kernels import reference
from kernels.batch import AttentionBatch, HeadNorms, RopeTable, StepTensors
from kernels.gpu.rope import rope_and_store
from tests.kernels.gpu.guarded import Guarded, mostly_equal, random

# One rounding to the tensors' type, of values up to about 8.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-5}


@dataclass(frozen=True)
class Shape:
    """Heads and blocks of a cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int


SHAPES = (
    Shape(num_heads=1, num_kv_heads=1, head_dim=2, block_size=8),
    Shape(num_heads=9, num_kv_heads=3, head_dim=64, block_size=16),
    Shape(num_heads=8, num_kv_heads=2, head_dim=96, block_size=8),
    Shape(num_heads=8, num_kv_heads=1, head_dim=128, block_size=24),
    Shape(num_heads=4, num_kv_heads=2, head_dim=256, block_size=32),
)
GQA = SHAPES[1]


@dataclass(frozen=True)
class Rows:
    """The rows of a step.

    Attributes:
        decodes: context lengths of rows with one token.
        chunks: (new tokens, context length) of the others.
        null_decodes: decode rows, after the others, of the null slot.
        empty_rows: rows without tokens at the end.
        spare_tokens: at the end, which no row owns.
    """

    decodes: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()
    null_decodes: int = 0
    empty_rows: int = 0
    spare_tokens: int = 0

    @property
    def owned(self) -> int:
        """Tokens that rows own."""
        return len(self.decodes) + self.null_decodes + sum(new for new, _ in self.chunks)


def device_step(rows: Rows, shape: Shape, device: torch.device) -> StepTensors:
    """As the device runner makes them: every slot's table, rows that name slots, int32 all over.

    Blocks are scattered over the cache and slots over the tables; the last table is the null
    slot's, all zeros. Tables of no row hold a block that no row has.
    """
    contexts = [*rows.decodes, *[1] * rows.null_decodes, *(length for _, length in rows.chunks)]
    counts = [1] * (len(rows.decodes) + rows.null_decodes) + [new for new, _ in rows.chunks]
    null = range(len(rows.decodes), len(rows.decodes) + rows.null_decodes)
    widths = [0 if r in null else -(-n // shape.block_size) for r, n in enumerate(contexts)]
    chance = torch.Generator().manual_seed(3)
    blocks = torch.randperm(sum(widths), generator=chance) + 1
    null_slot = len(contexts) + 3
    tables = torch.full((null_slot + 1, max(widths) + 1), sum(widths) + 1, dtype=torch.int32)
    tables[null_slot] = 0
    slots = torch.randperm(null_slot, generator=chance)[: len(contexts)].int()
    for row, own in enumerate(torch.split(blocks, widths)):
        tables[slots[row], : widths[row]] = own
    slots[list(null)] = null_slot
    positions = [torch.arange(n - new, n) for new, n in zip(counts, contexts, strict=True)]
    empty = [0] * rows.empty_rows
    starts = torch.tensor([0, *counts, *empty]).cumsum(0)
    spare = torch.full((rows.spare_tokens,), max(contexts) - 1)
    batch = AttentionBatch(
        token_ids=torch.zeros(rows.owned + rows.spare_tokens, dtype=torch.int32, device=device),
        positions=torch.cat((*positions, spare)).int().to(device),
        cu_seqlens=starts.int().to(device),
        seq_lens=torch.tensor([*contexts, *empty], dtype=torch.int32, device=device),
        block_table=tables.to(device),
        num_decodes=len(rows.decodes) + rows.null_decodes,
        sample_index=torch.tensor([0], device=device),
        row_slot=torch.cat((slots, torch.zeros(rows.empty_rows, dtype=torch.int32))).to(device),
    )
    frequencies = torch.linspace(1.0, 0.01, shape.head_dim // 2, device=device)
    return StepTensors(batch, shape.block_size, RopeTable.build(frequencies, max(contexts)))


def owned_part(step: StepTensors, count: int) -> StepTensors:
    """The step without tokens that no row owns."""
    whole = step.batch
    batch = replace(whole, token_ids=whole.token_ids[:count], positions=whole.positions[:count])
    return replace(step, batch=batch)


def caches(
    step: StepTensors, shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in which nothing was written yet, but for one block more than tables name."""
    num_blocks = int(step.batch.block_table.max()) + 2
    size = (num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim)
    return random(*size, seed=1, dtype=dtype, device=device), random(
        *size, seed=2, dtype=dtype, device=device
    )


def head_norms(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 7) -> HeadNorms:
    """Weights around 1, of queries unlike those of keys."""
    query = 1 + random(shape.head_dim, seed=seed, device=device) / 4
    key = 1 + random(shape.head_dim, seed=seed + 1, device=device) / 4
    return HeadNorms(query.to(dtype), key.to(dtype), 1e-6)


def check(
    rows: Rows,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    norms: HeadNorms | None = None,
) -> None:
    """Queries and the whole cache are the specification's."""
    step = device_step(rows, shape, device)
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    qkv = random(step.batch.num_tokens, width, dtype=dtype, device=device)
    qkv[rows.owned :] = float("nan")
    keys, values = caches(step, shape, dtype, device)
    cached_keys, cached_values, given = Guarded(keys), Guarded(values), Guarded(qkv)
    query = rope_and_store(given.tensor, step, cached_keys.tensor, cached_values.tensor, norms)
    owned = owned_part(step, rows.owned)
    expected = reference.rope_and_store(qkv[: rows.owned], owned, keys, values, norms)
    # The null block is for anybody to write.
    atol = TOLERANCE[dtype]
    torch.testing.assert_close(query[: rows.owned], expected, rtol=0, atol=atol)
    torch.testing.assert_close(cached_keys.tensor[1:], keys[1:], rtol=0, atol=atol)
    assert mostly_equal(query[: rows.owned], expected) or dtype == torch.float32
    assert torch.equal(cached_values.tensor[1:], values[1:])
    assert cached_keys.untouched()
    assert cached_values.untouched()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_heads_of_every_shape_are_turned_and_stored(
    shape: Shape, normed: bool, dtype: torch.dtype, device: torch.device
) -> None:
    rows = Rows(
        decodes=(shape.block_size, shape.block_size + 1), chunks=((3, 2 * shape.block_size),)
    )
    check(rows, shape, device, dtype, head_norms(shape, dtype, device) if normed else None)


EDGE = GQA.block_size


@pytest.mark.parametrize(
    "rows",
    [
        Rows(decodes=(1,)),
        Rows(decodes=(EDGE - 1, EDGE, EDGE + 1, 2 * EDGE, 5)),
        Rows(chunks=((1, 1),)),
        Rows(chunks=((EDGE + 1, EDGE + 1), (1, 40), (2, EDGE + 1))),
        Rows(decodes=(7, 100), chunks=((12, 12), (3, 50))),
        Rows(decodes=(7,), null_decodes=3),
        Rows(null_decodes=2),
        Rows(decodes=(7,), null_decodes=1, chunks=((5, 21),), empty_rows=3),
        Rows(decodes=(7,), chunks=((5, 21), (2, 2)), spare_tokens=4),
        Rows(decodes=(7,), chunks=((5, 21), (2, 2)), empty_rows=2, spare_tokens=4),
        Rows(decodes=(7, 33), spare_tokens=2),
    ],
    ids=str,
)
def test_every_token_goes_to_its_own_row_s_block(rows: Rows, device: torch.device) -> None:
    check(rows, GQA, device)


def test_many_rows(device: torch.device) -> None:
    small = Shape(num_heads=2, num_kv_heads=1, head_dim=16, block_size=8)
    lengths = tuple(1 + 5 * row % 19 for row in range(17))
    chunks = tuple((1 + row % 9, 9 + row) for row in range(21))
    check(Rows(decodes=lengths, chunks=chunks), small, device)


def test_a_row_without_a_slot_has_the_table_of_its_own_number(device: torch.device) -> None:
    step = device_step(Rows(decodes=(7, 20), chunks=((4, 30),)), GQA, device)
    batch = replace(step.batch, block_table=step.batch.row_tables, row_slot=None)
    plain = replace(step, batch=batch)
    qkv = random(6, 15 * GQA.head_dim, device=device)
    keys, values = caches(step, GQA, torch.float32, device)
    by_slot, by_row = (keys.clone(), values.clone()), (keys.clone(), values.clone())
    rope_and_store(qkv, step, *by_slot)
    rope_and_store(qkv, plain, *by_row)
    assert torch.equal(by_slot[0], by_row[0])
    assert torch.equal(by_slot[1], by_row[1])
    assert not torch.equal(by_row[1], values)


def test_wider_norm_weights_are_not_rounded(device: torch.device) -> None:
    check(Rows(decodes=(5,)), GQA, device, torch.bfloat16, head_norms(GQA, torch.float32, device))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
    reason="has no float8",
)
def test_a_float8_cache_holds_the_nearest_values(device: torch.device) -> None:
    rows = Rows(decodes=(5, 17), chunks=((4, 30),))
    step = device_step(rows, GQA, device)
    qkv = random(6, 15 * GQA.head_dim, device=device)
    qkv[0] *= 1e4
    keys, values = caches(step, GQA, torch.float32, device)
    stored = keys.to(torch.float8_e4m3fn), values.to(torch.float8_e4m3fn)
    rope_and_store(qkv, step, *stored)
    reference.rope_and_store(qkv, step, keys, values)
    for got, exact in zip(stored, (keys, values), strict=True):
        nearest = exact[1:].clamp(-448, 448).to(torch.float8_e4m3fn).float()
        torch.testing.assert_close(got[1:].float(), nearest, rtol=2**-3, atol=2**-9)
        assert (got[1:].float() == nearest).float().mean() > 0.99


def test_no_tokens_write_nothing(device: torch.device) -> None:
    step = owned_part(device_step(Rows(decodes=(5,)), GQA, device), 0)
    keys, values = caches(step, GQA, torch.float32, device)
    query = rope_and_store(torch.empty(0, 15 * 64, device=device), step, keys, values)
    assert query.shape == (0, GQA.num_heads, GQA.head_dim)


def changed(step: StepTensors, **fields: Any) -> StepTensors:
    """The step with other rows."""
    return replace(step, batch=replace(step.batch, **fields))


def refused(
    match: str,
    step: StepTensors,
    tensors: Sequence[torch.Tensor],
    norms: HeadNorms | None = None,
) -> None:
    """These are not accepted, with these words."""
    qkv, keys, values = tensors
    with pytest.raises(ValueError, match=match):
        rope_and_store(qkv, step, keys, values, norms)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    step = device_step(Rows(decodes=(7, 20)), GQA, device)
    keys, values = caches(step, GQA, torch.float32, device)
    qkv = random(2, 15 * GQA.head_dim, device=device)
    refused("qkv has rows of 384", step, (qkv[:, :384].contiguous(), keys, values))
    refused("values has shape", step, (qkv, keys, values[1:]))
    refused("values is float16; it must be float32", step, (qkv, keys, values.half()))
    refused("keys is float16; it must be float32 or float8", step, (qkv, keys.half(), values))
    refused("keys has strides", step, (qkv, keys.mT.contiguous().mT, values))
    refused("keys has blocks of 8 tokens", step, (qkv, keys[:, :, :8], values[:, :, :8]))
    positions = step.batch.positions[:1]
    refused(r"positions has shape \(1,\)", changed(step, positions=positions), (qkv, keys, values))
    slots = step.batch.seq_lens[:1]
    refused(r"row_slot has shape \(1,\)", changed(step, row_slot=slots), (qkv, keys, values))
    angles = replace(step, rope=RopeTable(step.rope.cos[:, :5].contiguous(), step.rope.sin))
    refused(r"cos has shape .* must be \(20, 32\)", angles, (qkv, keys, values))
    weights = head_norms(GQA, torch.float16, device)
    refused("norms.query is float16", step, (qkv, keys, values), weights)
