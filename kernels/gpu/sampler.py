"""Sampling on a GPU: `kernels.step_sampling.sample_and_commit` in three launches and no sort.

    scan     (tile, row)   the tile's likeliest token, and the one of best score z + noise
    weigh    (tile, row)   of rows with filters: what of the tile ranks before the row's drawn
                           token, the token of best score of all
    settle   (row)         greedy: the likeliest; else the drawn token, or one before it that the
                           filters keep; then what becomes of the sequence

A vocabulary is cut into tiles, so that a single row occupies many processors. The logits stay as
they are: whoever reads them adjusts them again.

**Filters without a threshold.** Min-p, top-k and top-p each keep the first so many tokens of the
ranking. So the drawn token is the answer if it is kept itself, which two sums tell: how many tokens
rank before it, and how likely these are together. If it is not kept, nothing from it downwards is,
and the token of best score among those *before* it is the next to be asked. The first is kept as
often as the filters keep mass, so `weigh` mostly has the answer ready, and `settle` looks through
the vocabulary only for the rows that are left. Each round cuts what is left at a random place: few
rounds reach any depth.

Top-k with top-p needs one more number, the mass of the k likeliest. Bounds of it decide most rows;
the others find the k-th token by partitioning, the token of best score being the pivot.

Masses are whole numbers, e^z in units of 2⁻⁴⁰: sums do not depend on the order of addition. z is
rounded exactly as in the specification, so ranks, ties among them, are the same. e^z and the noise
are float32, where the specification has float64: another token is drawn only where two scores, or
a mass and top-p's bound, differ by less than a few parts in a million.

Shapes: logits is [rows, vocab_size] with any row stride; `Tiles` is [rows, tiles].
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.adjust import Rules, adjusted, is_penalized, load_logits, needs_of
from kernels.gpu.philox import gumbel_noise
from kernels.gpu.sampler_filters import (
    CHUNK,
    CHUNK_WARPS,
    Row,
    best_of,
    first_kept,
    mass_of,
    ranks_before,
)
from kernels.gpu.sampler_tiles import (
    TILE,
    Tiles,
    bounds_of_top_k,
    drawn_of,
    likeliest_of,
    weighed_of,
)
from kernels.step_sampling import ERROR, LENGTH, NO_TOKEN, STOP, GrammarMasks, num_words
from kernels.step_tables import SlotSampling, SlotTables

TILE_WARPS = 8
_ENTRIES = tl.constexpr(128)

_STOP, _LENGTH, _ERROR = tl.constexpr(STOP), tl.constexpr(LENGTH), tl.constexpr(ERROR)
_NO_TOKEN = tl.constexpr(NO_TOKEN)

# Columns of a step's rows begin anywhere in their buffers: their alignment is not compiled in.
_COLUMNS = ["slots", "positions", "token_ids", "finish"]


@triton.jit(do_not_specialize_on_alignment=_COLUMNS[:2])
def scan_kernel(
    logits,
    slots,
    positions,
    done,
    rules,
    tiles,
    vocab_size,
    null_slot,
    row_stride,
    GRAMMAR: tl.constexpr,
    TILE: tl.constexpr,
):
    """One tile of one row, in registers."""
    first, row = tl.program_id(0) * TILE, tl.program_id(1)
    slot = tl.load(slots + row)
    if not _is_live(slot, done, null_slot):
        return
    position = tl.load(positions + row)
    here = row * tl.num_programs(0) + tl.program_id(0)
    token = first + tl.arange(0, TILE)
    raw = load_logits(logits + row.to(tl.int64) * row_stride, token, vocab_size)
    broken = (raw != raw) | (raw == float("inf"))
    tl.store(tiles.broken + here, tl.max(broken.to(tl.int32)))
    needs = needs_of(slot, position, rules, GRAMMAR)
    logit = adjusted(raw, first, slot, needs, rules, vocab_size, TILE)
    top = tl.max(logit)
    tl.store(tiles.top + here, top)
    tl.store(tiles.likeliest + here, tl.min(tl.where(logit == top, token, vocab_size)))
    temperature = tl.load(rules.temperature + slot)
    if temperature > 0:
        seed = tl.load(rules.seed + slot)
        z = tl.div_rn(logit - tl.where(top == float("-inf"), 0.0, top), temperature)
        score = z + gumbel_noise(seed, position, first, TILE)
        best, drawn, drawn_logit = best_of(score, token, logit, vocab_size)
        tl.store(tiles.score + here, best)
        tl.store(tiles.drawn + here, drawn)
        tl.store(tiles.drawn_logit + here, drawn_logit)


@triton.jit(do_not_specialize_on_alignment=_COLUMNS[:2])
def weigh_kernel(
    logits,
    slots,
    positions,
    done,
    rules,
    tiles,
    vocab_size,
    null_slot,
    row_stride,
    GRAMMAR: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """One tile of one row with filters: what of it ranks before the row's drawn token."""
    first, row = tl.program_id(0) * TILE, tl.program_id(1)
    slot = tl.load(slots + row)
    if not _is_live(slot, done, null_slot):
        return
    temperature = tl.load(rules.temperature + slot)
    if (temperature <= 0) | (not _is_filtered(slot, rules)):
        return
    num_tiles = tl.num_programs(0)
    top, _, broken = likeliest_of(tiles, row, num_tiles, vocab_size, TILES)
    if broken:
        return
    drawn, drawn_logit = drawn_of(tiles, row, num_tiles, top, temperature, vocab_size, TILES)
    token = first + tl.arange(0, TILE)
    raw = load_logits(logits + row.to(tl.int64) * row_stride, token, vocab_size)
    position = tl.load(positions + row)
    needs = needs_of(slot, position, rules, GRAMMAR)
    logit = adjusted(raw, first, slot, needs, rules, vocab_size, TILE)
    z, drawn_z = tl.div_rn(logit - top, temperature), tl.div_rn(drawn_logit - top, temperature)
    likelihood = tl.exp(z)
    mass = mass_of(likelihood)
    before = ranks_before(z, token, drawn_z, drawn)
    kept = likelihood >= tl.load(rules.min_p + slot)
    here = row * num_tiles + tl.program_id(0)
    count = tl.sum(before.to(tl.int32))
    tl.store(tiles.total + here, tl.sum(tl.where(kept, mass, 0)))
    tl.store(tiles.num_before + here, count)
    tl.store(tiles.mass_before + here, tl.sum(tl.where(before, mass, 0)))
    best, drawn, drawn_z = float("-inf"), vocab_size, float("-inf")
    if count > 0:
        score = z + gumbel_noise(tl.load(rules.seed + slot), position, first, TILE)
        score = tl.where(before & kept, score, float("-inf"))
        best, drawn, drawn_z = best_of(score, token, z, vocab_size)
    tl.store(tiles.next_score + here, best)
    tl.store(tiles.next_drawn + here, drawn)
    tl.store(tiles.next_z + here, drawn_z)


@triton.jit(do_not_specialize_on_alignment=_COLUMNS)
def settle_kernel(
    logits,
    slots,
    positions,
    tokens,
    done,
    rules,
    tiles,
    token_ids,
    finish,
    vocab_size,
    num_tiles,
    null_slot,
    row_stride,
    tokens_stride,
    GRAMMAR: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
):
    """One row: its token, and what becomes of its sequence."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if not _is_live(slot, done, null_slot):
        tl.store(token_ids + row, _NO_TOKEN)
        tl.store(finish + row, 0)
        return
    position = tl.load(positions + row)
    temperature = tl.load(rules.temperature + slot)
    top, token, failed = likeliest_of(tiles, row, num_tiles, vocab_size, TILES)
    if (temperature > 0) & (not failed):
        token, logit = drawn_of(tiles, row, num_tiles, top, temperature, vocab_size, TILES)
        if _is_filtered(slot, rules):
            top_k, min_p = tl.load(rules.top_k + slot), tl.load(rules.min_p + slot)
            floor, least = bounds_of_top_k(
                tiles, row, num_tiles, top, temperature, top_k, min_p, TILES
            )
            this = Row(
                logits + row.to(tl.int64) * row_stride,
                slot,
                position,
                needs_of(slot, position, rules, GRAMMAR),
                top,
                temperature,
                top_k,
                tl.load(rules.top_p + slot),
                min_p,
                tl.load(rules.seed + slot),
                floor,
            )
            weighed = weighed_of(tiles, row, num_tiles, vocab_size, TILES)
            z = tl.div_rn(logit - top, temperature)
            token = first_kept(this, token, z, weighed, least, rules, vocab_size, CHUNK)
    token = tl.where(failed, 0, token)
    _commit(
        row,
        slot,
        position,
        token,
        failed,
        tokens,
        done,
        rules,
        token_ids,
        finish,
        vocab_size,
        tokens_stride,
    )


@triton.jit
def _commit(
    row,
    slot,
    position,
    token,
    failed,
    tokens,
    done,
    rules,
    token_ids,
    finish,
    vocab_size,
    tokens_stride,
):
    """Stores the token and decides whether the sequence ends."""
    wide_slot = slot.to(tl.int64)
    stops = False
    stop_ids = rules.stop_ids + wide_slot * rules.max_stops
    for start in range(0, rules.max_stops, _ENTRIES):
        entry = start + tl.arange(0, _ENTRIES)
        stop = tl.load(stop_ids + entry, entry < rules.max_stops, -1)
        stops = stops | (tl.max((stop == token).to(tl.int32)) > 0)
    ended = tl.where(position + 1 >= tl.load(rules.limit + slot), _LENGTH, 0)
    ended = tl.where(stops, _STOP, ended)
    ended = tl.where(failed | (tl.load(rules.invalid + slot) > 0), _ERROR, ended)
    # Each warp asked at the start whether the slot is done: let the last of them have read it.
    tl.debug_barrier()
    tl.store(token_ids + row, token)
    tl.store(finish + row, ended)
    tl.store(tokens + wide_slot * tokens_stride + position, token)
    tl.store(done + slot, (ended > 0).to(tl.int32))
    if is_penalized(wide_slot, rules):
        count = rules.output_count + wide_slot * vocab_size + token
        tl.store(count, tl.load(count) + 1)


@triton.jit
def _is_live(slot, done, null_slot):
    return (slot != null_slot) & (tl.load(done + slot) == 0)


@triton.jit
def _is_filtered(slot, rules):
    top_k, top_p = tl.load(rules.top_k + slot), tl.load(rules.top_p + slot)
    return (top_k > 0) | (top_p < 1) | (tl.load(rules.min_p + slot) > 0)


# --- host -----------------------------------------------------------------------------------------


def sample_and_commit(
    logits: torch.Tensor,
    slot: torch.Tensor,
    new_position: torch.Tensor,
    sampling: SlotSampling,
    slots: SlotTables,
    token_id: torch.Tensor,
    finish: torch.Tensor,
    tiles: Tiles,
    grammar: GrammarMasks | None = None,
) -> None:
    """`kernels.step_sampling.sample_and_commit`; reads nothing back.

    Args:
        tiles: of at least as many rows, for this vocabulary; overwritten.
    """
    num_rows, vocab_size = logits.shape
    num_tiles = triton.cdiv(vocab_size, TILE)
    _check(logits, slot, new_position, sampling, token_id, finish, tiles, grammar)
    if not num_rows:
        return
    rules, tiles_power = Rules.of(sampling, grammar), triton.next_power_of_2(num_tiles)
    batch = (logits, slot, new_position)
    sizes = (vocab_size, slots.null_slot, logits.stride(0))
    flags = {"GRAMMAR": grammar is not None}
    scan_kernel[(num_tiles, num_rows)](
        *batch, slots.done, rules, tiles, *sizes, **flags, TILE=TILE, num_warps=TILE_WARPS
    )
    weigh_kernel[(num_tiles, num_rows)](
        *batch,
        slots.done,
        rules,
        tiles,
        *sizes,
        **flags,
        TILE=TILE,
        TILES=tiles_power,
        num_warps=TILE_WARPS,
    )
    settle_kernel[(num_rows,)](
        *batch,
        slots.tokens,
        slots.done,
        rules,
        tiles,
        token_id,
        finish,
        vocab_size,
        num_tiles,
        slots.null_slot,
        logits.stride(0),
        slots.tokens.stride(0),
        **flags,
        CHUNK=CHUNK,
        TILES=tiles_power,
        num_warps=CHUNK_WARPS,
    )


def _check(
    logits: torch.Tensor,
    slot: torch.Tensor,
    new_position: torch.Tensor,
    sampling: SlotSampling,
    token_id: torch.Tensor,
    finish: torch.Tensor,
    tiles: Tiles,
    grammar: GrammarMasks | None,
) -> None:
    num_rows, vocab_size = logits.shape
    if logits.stride(1) != 1:
        raise ValueError(f"logits have strides {logits.stride()}; a row must be contiguous")
    for name, column in (
        ("slot", slot),
        ("new_position", new_position),
        ("token_id", token_id),
        ("finish", finish),
    ):
        if column.shape != (num_rows,) or not column.is_contiguous():
            raise ValueError(
                f"{name} has shape {tuple(column.shape)}; the logits have {num_rows} rows"
            )
    if sampling.output_count.shape[1] != vocab_size:
        raise ValueError(
            f"output_count has {sampling.output_count.shape[1]} columns; "
            f"the vocabulary has {vocab_size} tokens"
        )
    words = num_words(vocab_size)
    if grammar is not None and grammar.allowed.shape[1] != words:
        raise ValueError(
            f"the grammar has {grammar.allowed.shape[1]} words; the vocabulary needs {words}"
        )
    if tiles.top.shape[0] < num_rows or tiles.top.shape[1] != triton.cdiv(vocab_size, TILE):
        raise ValueError(
            f"tiles have shape {tuple(tiles.top.shape)}; "
            f"{num_rows} rows of {vocab_size} tokens need another"
        )
