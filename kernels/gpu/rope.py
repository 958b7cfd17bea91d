"""Everything between the QKV projection and attention, in one kernel: the norm of query and key
heads if there is one, rotary embedding, and the write into the paged cache.

    q[t, h] ← rotate(norm(q[t, h]), position t)
    keys[block, h, offset] ← rotate(norm(k[t, h]), position t)
    values[block, h, offset] ← v[t, h]

where rotate turns the pair (i, i + head_dim / 2) by the position's i-th angle (arXiv 2104.09864),
block is ``table[position // block_size]`` of the token's row and offset ``position % block_size``:
no table of slots is built beforehand. A float8 cache takes the nearest value, the largest for those
beyond it.

Shapes: qkv is ``[num_tokens, (num_heads + 2 · num_kv_heads) · head_dim]``, queries first, keys and
values ``[num_blocks, num_kv_heads, block_size, head_dim]``. A program takes some heads of one
token, as two tiles: the low halves of these heads and the high halves. Queries, keys and values may
meet in a program; it computes all of them alike and stores each where it belongs.
"""

import torch
import triton
import triton.language as tl

from kernels.batch import HeadNorms, StepTensors
from kernels.gpu.checks import require, require_dtype
from kernels.gpu.norm import weighted
from kernels.gpu.rows import row_of

FLOAT8 = torch.float8_e4m3fn
_ELEMENTS_PER_PROGRAM = 1024
NUM_WARPS = 2


@triton.jit
def _head_weights(query_weight, key_weight, is_query, at, inside):
    """The norm's weights of these heads' elements."""
    query, key = tl.load(query_weight + at, inside, 0.0), tl.load(key_weight + at, inside, 0.0)
    return tl.where(is_query, query[None, :], key[None, :])


@triton.jit(do_not_specialize=["num_decodes", "num_rows"])
def rope_and_store_kernel(
    qkv,
    positions,
    cu_seqlens,
    row_slot,
    tables,
    cos,
    sin,
    query_weight,
    key_weight,
    query,
    keys,
    values,
    eps,
    num_decodes,
    num_rows,
    table_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """HEADS heads of one token; `row_slot` and the weights are None where there are none."""
    token = tl.program_id(0)
    if token >= tl.load(cu_seqlens + num_rows):
        return
    row = row_of(token, cu_seqlens, num_decodes, num_rows)
    table = row if row_slot is None else tl.load(row_slot + row)
    position = tl.load(positions + token)
    block = tl.load(tables + table.to(tl.int64) * table_stride + position // BLOCK_SIZE)

    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    key_head, value_head = head - NUM_HEADS, head - NUM_HEADS - NUM_KV_HEADS
    is_query, is_value = key_head < 0, value_head >= 0
    at = tl.arange(0, WIDTH)
    half = at < HALF
    inside = half[None, :] & (value_head < NUM_KV_HEADS)
    token = token.to(tl.int64)
    start = qkv + (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * (2 * HALF) + at[None, :]
    raw_low, raw_high = tl.load(start, inside, 0.0), tl.load(start + HALF, inside, 0.0)

    low, high = raw_low.to(tl.float32), raw_high.to(tl.float32)
    if query_weight is not None:
        squares = tl.sum(low * low + high * high, 1)[:, None]
        scale = tl.rsqrt(squares / (2 * HALF) + eps)
        low_weight = _head_weights(query_weight, key_weight, is_query, at, half)
        high_weight = _head_weights(query_weight, key_weight, is_query, at + HALF, half)
        low = weighted(low, scale, low_weight).to(raw_low.dtype).to(tl.float32)
        high = weighted(high, scale, high_weight).to(raw_low.dtype).to(tl.float32)
    angles = position.to(tl.int64) * HALF + at
    c, s = tl.load(cos + angles, half, 0.0)[None, :], tl.load(sin + angles, half, 0.0)[None, :]
    turned_low, turned_high = low * c - high * s, high * c + low * s

    to_query = query + (token * NUM_HEADS + head) * (2 * HALF) + at[None, :]
    tl.store(to_query, turned_low.to(query.dtype.element_ty), inside & is_query)
    tl.store(to_query + HALF, turned_high.to(query.dtype.element_ty), inside & is_query)
    in_block = block.to(tl.int64) * NUM_KV_HEADS
    offset = position % BLOCK_SIZE
    to_key = keys + ((in_block + key_head) * BLOCK_SIZE + offset) * (2 * HALF) + at[None, :]
    is_key = inside & (key_head >= 0) & (value_head < 0)
    tl.store(to_key, turned_low.to(keys.dtype.element_ty), is_key)
    tl.store(to_key + HALF, turned_high.to(keys.dtype.element_ty), is_key)
    to_value = values + ((in_block + value_head) * BLOCK_SIZE + offset) * (2 * HALF) + at[None, :]
    tl.store(to_value, raw_low.to(values.dtype.element_ty), inside & is_value)
    tl.store(to_value + HALF, raw_high.to(values.dtype.element_ty), inside & is_value)


def heads_per_program(head_dim: int) -> int:
    """So many heads of this size as keep a program's threads busy with one 16-byte load each."""
    width: int = triton.next_power_of_2(head_dim)
    return max(_ELEMENTS_PER_PROGRAM // width, 1)


def rope_and_store(
    qkv: torch.Tensor,
    step: StepTensors,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """`kernels.reference.rope_and_store`.

    Tokens that no row owns are passed over: their queries are undefined, nothing is stored.

    Raises:
        ValueError: a shape, type or device is not what it must be.
    """
    batch = step.batch
    _, num_kv_heads, block_size, head_dim = keys.shape
    num_tokens, width = qkv.shape
    num_heads = width // head_dim - 2 * num_kv_heads
    _check(qkv, step, keys, values, norms)
    query = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    heads = heads_per_program(head_dim)
    grid = (num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, heads))
    if num_tokens:
        rope_and_store_kernel[grid](
            qkv,
            batch.positions,
            batch.cu_seqlens,
            batch.row_slot,
            batch.block_table,
            step.rope.cos,
            step.rope.sin,
            None if norms is None else norms.query,
            None if norms is None else norms.key,
            query,
            keys,
            values,
            0.0 if norms is None else norms.eps,
            batch.num_decodes,
            batch.num_rows,
            batch.block_table.stride(0),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            BLOCK_SIZE=block_size,
            HALF=head_dim // 2,
            HEADS=heads,
            WIDTH=triton.next_power_of_2(head_dim // 2),
            num_warps=NUM_WARPS,
        )
    return query


def _check(
    qkv: torch.Tensor,
    step: StepTensors,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: HeadNorms | None,
) -> None:
    batch, rope = step.batch, step.rope
    _, num_kv_heads, block_size, head_dim = keys.shape
    num_tokens, width = qkv.shape
    if head_dim % 2 or width % head_dim or width // head_dim <= 2 * num_kv_heads:
        raise ValueError(
            f"qkv has rows of {width}; that is no query heads and {num_kv_heads} key and value "
            f"heads each of an even size, {head_dim}"
        )
    if block_size != step.block_size:
        raise ValueError(
            f"keys has blocks of {block_size} tokens; the step's have {step.block_size}"
        )
    require("qkv", qkv, qkv, qkv.shape)
    require("keys", keys, qkv, keys.shape)
    require("values", values, qkv, keys.shape)
    require_dtype("keys", keys, qkv.dtype, FLOAT8)
    require_dtype("values", values, keys.dtype)
    require("positions", batch.positions, qkv, (num_tokens,))
    require("cu_seqlens", batch.cu_seqlens, qkv, (batch.num_rows + 1,))
    require("block_table", batch.block_table, qkv, batch.block_table.shape)
    if batch.row_slot is not None:
        require("row_slot", batch.row_slot, qkv, (batch.num_rows,))
    for name, table in (("cos", rope.cos), ("sin", rope.sin)):
        require(name, table, qkv, (table.shape[0], head_dim // 2))
        require_dtype(name, table, torch.float32)
    if norms is not None:
        for name, weight in (("norms.query", norms.query), ("norms.key", norms.key)):
            require(name, weight, qkv, (head_dim,))
            require_dtype(name, weight, qkv.dtype, torch.float32)
