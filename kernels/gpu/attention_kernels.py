"""The kernels of paged attention, which `kernels.gpu.attention` launches.

    out[i, h] = Σ_n softmax_n(scale · q[i, h] · k[n, h // group]) · v[n, h // group]

over the positions n that token i sees: all up to its own, or the last `window` of them. Keys and
values of position n lie in block ``table[n // block_size]`` at offset ``n % block_size``.

A program folds tiles of keys and values into a running softmax (FlashAttention, arXiv 2205.14135).
The query heads of a group are rows of one matrix product, so a program reads each key and value
once, whatever the group. The rows of a step go two ways, one launch each:

    decodes   a program per (row, KV head, split). Bound by memory. Where rows are too few to fill
              the device a context is cut into splits, each with a softmax of its own, and a second
              kernel joins them.
    chunks    a program per (Q-block, KV head), a Q-block being `block_q` consecutive tokens of one
              row. Bound by arithmetic: tiles that all of them see whole go without masks.

A program looks up the blocks of a tile while it works on the tile before: an address that waited
for a load in the same turn of the loop would halve the depth of the pipeline of copies.

Grids come from shapes alone and everything else is read on the device, so a CUDA graph can hold a
launch. Q-blocks are numbered so that a row's follow from where it begins: row r's first one is
``cu_seqlens[r] // block_q + r``, which leaves room for the last, partial one of each row before it.
A program finds its row by bisection; numbers between two rows' blocks have no work.

What a row gets depends on its tokens, its context and the launch (its `Tiling` and, for decodes,
the number of splits), not on the rows beside it: as long as shapes choose the same launch it gets
the same bits.

Nothing is read beyond a row's context or before its window, so blocks may hold anything there.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Context(NamedTuple):
    """Where a program finds the keys and values of a row, as seen by one KV head.

    Attributes:
        key_head: pointer to this head's keys of block 0.
        value_head: likewise.
        stride_block: from a block to the next, in elements.
        table: pointer to the row's block table.
        length: tokens of the row's context.
    """

    key_head: tl.tensor
    value_head: tl.tensor
    stride_block: tl.tensor
    table: tl.tensor
    length: tl.tensor


class Sharpness(NamedTuple):
    """How products of queries and keys become logarithms, to base 2, of unnormed weights.

    Attributes:
        squash: products p become s = tanh(squash · p); None: s = p.
        factor: multiplies s.
    """

    squash: tl.tensor | None
    factor: tl.tensor


@triton.jit
def _context(
    keys, values, stride_block, tables, stride_table, row_slot, seq_lens, row, kv_head,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    head = kv_head * BLOCK_SIZE * HEAD_DIM
    slot = row if row_slot is None else tl.load(row_slot + row)
    table = tables + slot.to(tl.int64) * stride_table
    return Context(keys + head, values + head, stride_block, table, tl.load(seq_lens + row))


@triton.jit
def _look_up(context, positions, BLOCK_SIZE: tl.constexpr):
    """Block ids of these positions; beyond the context none is read."""
    inside = positions < context.length
    return tl.load(context.table + positions // BLOCK_SIZE, inside, 0)


@triton.jit
def _read(cache, offsets, readable, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Keys or values, [tile, WIDTH]; zeros where not readable and past HEAD_DIM."""
    dims = tl.arange(0, WIDTH)
    mask = (dims < HEAD_DIM)[None, :]
    if readable is not None:
        mask = mask & readable[:, None]
    return tl.load(cache + offsets[:, None] + dims[None, :], mask, 0.0)


@triton.jit
def _fold(
    acc, top, total, query, context, blocks, positions, readable, visible, sharpness,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, MAY_SEE_NOTHING: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values into the running softmax of each query.

    Args:
        acc: [queries, width] float32, the weighted sum of values.
        top: [queries], logarithm of the greatest weight so far; weights are relative to it.
        total: [queries], the sum of weights.
        query: [queries, width].
        context: whose keys and values.
        blocks: [tile], where these are.
        positions: [tile].
        readable: [tile] bool, what may be read; None for all.
        visible: [queries or 1, tile] bool, what may have weight; None for all.
        sharpness: of the weights.
        MAY_SEE_NOTHING: whether a query may have seen nothing up to the end of this tile.
    """
    offsets = blocks.to(tl.int64) * context.stride_block + positions % BLOCK_SIZE * HEAD_DIM
    key = _read(context.key_head, offsets, readable, HEAD_DIM, acc.shape[1]).to(query.dtype)
    scores = tl.dot(query, key.T, input_precision="ieee")
    if sharpness.squash is not None:
        scores = 2 * tl.sigmoid(2 * sharpness.squash * scores) - 1
    if visible is not None:
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * sharpness.factor)
    if MAY_SEE_NOTHING:
        new_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores * sharpness.factor - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    value = _read(context.value_head, offsets, readable, HEAD_DIM, acc.shape[1]).to(query.dtype)
    acc = tl.dot(weights.to(query.dtype), value, acc * shrink[:, None], input_precision="ieee")
    return acc, new_top, total


@triton.jit
def _no_weights(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The running softmax before the first tile."""
    top = tl.full([ROWS], float("-inf"), tl.float32)
    return tl.zeros([ROWS, WIDTH], tl.float32), top, tl.zeros([ROWS], tl.float32)


@triton.jit
def attend_decodes_kernel(
    query, keys, values, tables, row_slot, seq_lens, out, logsums,
    stride_block, stride_table, squash, factor, value_scale,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One split of one row for one KV head; with `logsums`, `out` takes the parts to be joined."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = _context(
        keys, values, stride_block, tables, stride_table, row_slot, seq_lens, row, kv_head,
        BLOCK_SIZE, HEAD_DIM,
    )  # fmt: skip
    length = context.length
    first = 0 if WINDOW is None else tl.maximum(length - WINDOW, 0)
    begin, end = first // TILE, tl.cdiv(length, TILE)
    share = tl.cdiv(end - begin, tl.num_programs(2))
    begin += split * share
    end = tl.minimum(begin + share, end)

    head, dims = tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    at = (row * tl.num_programs(1) + kv_head) * GROUP + head
    present = (head < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    queries = tl.load(query + at[:, None] * HEAD_DIM + dims[None, :], present, 0.0)
    acc, top, total = _no_weights(BLOCK_M, WIDTH)
    ahead = begin * TILE + tl.arange(0, TILE)
    blocks_ahead = _look_up(context, ahead, BLOCK_SIZE)
    for _ in range(begin, end):
        positions, blocks = ahead, blocks_ahead
        ahead += TILE
        blocks_ahead = _look_up(context, ahead, BLOCK_SIZE)
        seen = positions < length
        if WINDOW is not None:
            seen = seen & (positions >= first)
        acc, top, total = _fold(
            acc, top, total, queries, context, blocks, positions, seen, seen[None, :],
            Sharpness(squash, factor), BLOCK_SIZE, HEAD_DIM, False,
        )  # fmt: skip
    acc *= (value_scale / total)[:, None]
    if logsums is not None:
        at = at * tl.num_programs(2) + split
        tl.store(logsums + at, top + tl.log2(total), head < GROUP)
    to_out = out + at[:, None] * HEAD_DIM + dims[None, :]
    tl.store(to_out, acc.to(out.dtype.element_ty), present)


@triton.jit(do_not_specialize=["splits"])
def join_splits_kernel(
    parts, logsums, out, splits,
    HEAD_DIM: tl.constexpr, MAX_SPLITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One query head of one row: the mean of its parts, weighted by their sums of weights."""
    at = tl.program_id(0)
    split, dims = tl.arange(0, MAX_SPLITS), tl.arange(0, WIDTH)
    logsum = tl.load(logsums + at * splits + split, split < splits, float("-inf"))
    weights = tl.exp2(logsum - tl.max(logsum, 0))
    present = (logsum > float("-inf"))[:, None] & (dims < HEAD_DIM)[None, :]
    offsets = (at * splits + split)[:, None] * HEAD_DIM + dims[None, :]
    part = tl.load(parts + offsets, present, 0.0)
    mean = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + at * HEAD_DIM + dims, mean.to(out.dtype.element_ty), dims < HEAD_DIM)


@triton.jit
def _row_of_block(block, cu_seqlens, first_row, num_rows, BLOCK_Q: tl.constexpr):
    """The last row whose Q-blocks begin at this number or before."""
    low, high = first_row, num_rows
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(cu_seqlens + middle) // BLOCK_Q + middle <= block
        low = tl.where(begins, middle, low)
        high = tl.where(begins, high, middle)
    return low


@triton.jit(do_not_specialize=["first_row", "num_rows"])
def attend_chunks_kernel(
    query, keys, values, tables, row_slot, cu_seqlens, seq_lens, out,
    first_row, num_rows, stride_block, stride_table, squash, factor, value_scale,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One Q-block for one KV head. Blocks late in a chunk, which see most, are begun first."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    late = tl.num_programs(0) - 1 - tl.program_id(0)
    block, kv_head = first_row // BLOCK_Q + first_row + late, tl.program_id(1)
    row = _row_of_block(block, cu_seqlens, first_row, num_rows, BLOCK_Q)
    row_begin, row_end = tl.load(cu_seqlens + row), tl.load(cu_seqlens + row + 1)
    first_token = row_begin + (block - row_begin // BLOCK_Q - row) * BLOCK_Q
    if first_token >= row_end:
        return
    context = _context(
        keys, values, stride_block, tables, stride_table, row_slot, seq_lens, row, kv_head,
        BLOCK_SIZE, HEAD_DIM,
    )  # fmt: skip

    lane, dims = tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    token = first_token + lane // GROUP
    at = (token * tl.num_programs(1) + kv_head) * GROUP + lane % GROUP
    present = ((lane < BLOCK_Q * GROUP) & (token < row_end))[:, None] & (dims < HEAD_DIM)[None, :]
    queries = tl.load(query + at[:, None] * HEAD_DIM + dims[None, :], present, 0.0)

    # Positions of the block's tokens; lanes without one count as the last.
    oldest = context.length - row_end + first_token
    newest = tl.minimum(oldest + BLOCK_Q, context.length) - 1
    own = tl.minimum(oldest + lane // GROUP, newest)
    # Tiles from `begin` to `end` are seen by some token, from `whole` to `whole_end` by all.
    first = 0 if WINDOW is None else tl.maximum(oldest - WINDOW + 1, 0)
    begin, end = first // TILE, newest // TILE + 1
    whole = begin
    if WINDOW is not None:
        whole = tl.minimum(tl.cdiv(tl.maximum(newest - WINDOW + 1, 0), TILE), end)
    whole_end = tl.maximum((oldest + 1) // TILE, whole)

    acc, top, total = _no_weights(BLOCK_M, WIDTH)
    ahead = whole * TILE + tl.arange(0, TILE)
    blocks_ahead = _look_up(context, ahead, BLOCK_SIZE)
    for _ in range(whole, whole_end):
        positions, blocks = ahead, blocks_ahead
        ahead += TILE
        blocks_ahead = _look_up(context, ahead, BLOCK_SIZE)
        acc, top, total = _fold(
            acc, top, total, queries, context, blocks, positions, None, None,
            Sharpness(squash, factor), BLOCK_SIZE, HEAD_DIM, False,
        )  # fmt: skip
    tile = tl.where(begin < whole, begin, whole_end)
    ahead = tile * TILE + tl.arange(0, TILE)
    blocks_ahead = _look_up(context, ahead, BLOCK_SIZE)
    for _ in range(whole - begin + end - whole_end):
        positions, blocks = ahead, blocks_ahead
        tile = tl.where(tile + 1 == whole, whole_end, tile + 1)
        ahead = tile * TILE + tl.arange(0, TILE)
        blocks_ahead = _look_up(context, ahead, BLOCK_SIZE)
        readable = positions <= newest
        visible = positions[None, :] <= own[:, None]
        if WINDOW is not None:
            readable = readable & (positions >= first)
            visible = visible & (positions[None, :] > own[:, None] - WINDOW)
        acc, top, total = _fold(
            acc, top, total, queries, context, blocks, positions, readable, visible,
            Sharpness(squash, factor), BLOCK_SIZE, HEAD_DIM, WINDOW is not None,
        )  # fmt: skip
    acc *= (value_scale / total)[:, None]
    to_out = out + at[:, None] * HEAD_DIM + dims[None, :]
    tl.store(to_out, acc.to(out.dtype.element_ty), present)
