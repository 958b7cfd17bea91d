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

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.gpu.adjust import Needs, Rules, adjusted, is_penalized, needs_of
from kernels.gpu.philox import gumbel_noise
from kernels.step_sampling import ERROR, LENGTH, NO_TOKEN, STOP, GrammarMasks, num_words
from kernels.step_tables import SlotSampling, SlotTables

TILE = 2048
TILE_WARPS = 8
CHUNK = 4096
CHUNK_WARPS = 8
FOLD = tl.constexpr(CHUNK // (32 * CHUNK_WARPS))

_STOP, _LENGTH, _ERROR = tl.constexpr(STOP), tl.constexpr(LENGTH), tl.constexpr(ERROR)
_NO_TOKEN = tl.constexpr(NO_TOKEN)
_MASS = tl.constexpr(2.0**40)


class Tiles(NamedTuple):
    """What the launches tell each other, [rows, tiles] each.

    Attributes:
        top, likeliest: the greatest logit after steps 1 to 4, and whose it is.
        broken: whether the model's logits hold a NaN or +∞.
        score, drawn, drawn_logit: the best z + noise with z relative to `top`, and whose it is.
        total: mass of what min-p keeps.
        num_before, mass_before: tokens that rank before the row's drawn one, and how likely.
        next_score, next_drawn, next_z: of those that min-p keeps, the best score and whose it is.
    """

    top: torch.Tensor
    likeliest: torch.Tensor
    broken: torch.Tensor
    score: torch.Tensor
    drawn: torch.Tensor
    drawn_logit: torch.Tensor
    total: torch.Tensor
    num_before: torch.Tensor
    mass_before: torch.Tensor
    next_score: torch.Tensor
    next_drawn: torch.Tensor
    next_z: torch.Tensor

    @classmethod
    def empty(cls, max_rows: int, vocab_size: int, device: torch.device) -> "Tiles":
        """For steps of up to so many rows; what it holds between them means nothing."""
        shape = (max_rows, triton.cdiv(vocab_size, TILE))
        real, whole, long = torch.float32, torch.int32, torch.int64
        scanned = (real, whole, whole, real, whole, real)
        weighed = (long, whole, long, real, whole, real)
        return cls(*(torch.empty(shape, dtype=dtype, device=device) for dtype in scanned + weighed))

    @staticmethod
    def num_bytes(max_rows: int, vocab_size: int) -> int:
        """What `empty` takes."""
        num_tiles: int = triton.cdiv(vocab_size, TILE)
        return max_rows * num_tiles * (10 * 4 + 2 * 8)


class Row(NamedTuple):
    """What `settle` knows of a row with filters."""

    logits: tl.tensor
    slot: tl.tensor
    position: tl.tensor
    needs: Needs
    top: tl.tensor
    temperature: tl.tensor
    top_k: tl.tensor
    top_p: tl.tensor
    min_p: tl.tensor
    seed: tl.tensor
    floor: tl.tensor


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
    raw = _load(logits + row.to(tl.int64) * row_stride, token, vocab_size)
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
        best, drawn, drawn_logit = _best(score, token, logit, vocab_size)
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
    top, _, broken = _likeliest(tiles, row, num_tiles, vocab_size, TILES)
    if broken:
        return
    drawn, drawn_logit = _drawn(tiles, row, num_tiles, top, temperature, vocab_size, TILES)
    token = first + tl.arange(0, TILE)
    raw = _load(logits + row.to(tl.int64) * row_stride, token, vocab_size)
    position = tl.load(positions + row)
    needs = needs_of(slot, position, rules, GRAMMAR)
    logit = adjusted(raw, first, slot, needs, rules, vocab_size, TILE)
    z, drawn_z = tl.div_rn(logit - top, temperature), tl.div_rn(drawn_logit - top, temperature)
    likelihood = tl.exp(z)
    mass = _mass(likelihood)
    before = _ranks_before(z, token, drawn_z, drawn)
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
        best, drawn, drawn_z = _best(score, token, z, vocab_size)
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
    top, token, failed = _likeliest(tiles, row, num_tiles, vocab_size, TILES)
    if (temperature > 0) & (not failed):
        token, logit = _drawn(tiles, row, num_tiles, top, temperature, vocab_size, TILES)
        if _is_filtered(slot, rules):
            top_k, min_p = tl.load(rules.top_k + slot), tl.load(rules.min_p + slot)
            floor, least = _of_top_tiles(
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
            weighed = _weighed(tiles, row, num_tiles, vocab_size, TILES)
            z = tl.div_rn(logit - top, temperature)
            token = _first_kept(this, token, z, weighed, least, rules, vocab_size, CHUNK)
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
    wide_slot = slot.to(tl.int64)
    stops = False
    start = 0
    while start < rules.max_stops:
        entry = start + tl.arange(0, 128)
        stop = tl.load(
            rules.stop_ids + wide_slot * rules.max_stops + entry, entry < rules.max_stops, -1
        )
        stops = stops | (tl.max((stop == token).to(tl.int32)) > 0)
        start += 128
    ended = tl.where(position + 1 >= tl.load(rules.limit + slot), _LENGTH, 0)
    ended = tl.where(stops, _STOP, ended)
    ended = tl.where(failed | (tl.load(rules.invalid + slot) > 0), _ERROR, ended)
    tl.store(token_ids + row, token)
    tl.store(finish + row, ended)
    tl.store(tokens + wide_slot * tokens_stride + position, token)
    tl.store(done + slot, (ended > 0).to(tl.int32))
    if is_penalized(wide_slot, rules):
        count = rules.output_count + wide_slot * vocab_size + token
        tl.store(count, tl.load(count) + 1)


# --- one row's filters ----------------------------------------------------------------------------


@triton.jit
def _first_kept(row, token, z, weighed, least, rules, vocab_size, CHUNK: tl.constexpr):
    """The kept token of best score.

    Args:
        token, z: of the best score of all.
        weighed: what `weigh` found about it.
        least: some of the mass that min-p and top-k keep.
    """
    # Bounds of the mass that top-p takes its share of.
    most = weighed.total
    least = tl.where(row.top_k > 0, least, most)
    count, mass = weighed.num_before, weighed.mass_before
    drawn, drawn_z = weighed.drawn, weighed.drawn_z
    searching = True
    while searching:
        likelihood = tl.exp(z)
        kept = (likelihood >= row.min_p) & ((row.top_k == 0) | (count < row.top_k))
        if kept & (row.top_p < 1):
            least = tl.maximum(least, mass + _mass(likelihood))
            if _is_share(mass, row.top_p, most) & (not _is_share(mass, row.top_p, least)):
                least = _mass_of_top_k(row, token, z, rules, vocab_size, CHUNK)
                most = least
            kept = _is_share(mass, row.top_p, least)
        if kept:
            searching = False
        else:
            token, z = drawn, drawn_z
            count, mass, drawn, drawn_z, _, _ = _survey(
                row, token, z, -1, float("inf"), token, z, rules, vocab_size, CHUNK
            )
    return token


@triton.jit
def _is_share(mass, top_p, total):
    """Whether mass is less than the share top_p of the total."""
    return mass.to(tl.float64) < top_p.to(tl.float64) * total.to(tl.float64)


@triton.jit
def _mass_of_top_k(row, token, z, rules, vocab_size, CHUNK: tl.constexpr):
    """Mass of what min-p and top-k keep; the given token is one of these.

    The last of them is `start` or ranks between `start` and `end`. Each round takes a token from
    between as pivot and learns on which side of it the last one is.
    """
    start, start_z = token, z
    end, end_z = vocab_size, row.floor
    answer = tl.zeros([], tl.int64)
    searching = True
    while searching:
        count, mass, above, above_z, below, below_z = _survey(
            row, token, z, start, start_z, end, end_z, rules, vocab_size, CHUNK
        )
        if count < row.top_k:
            answer = mass + _mass(tl.exp(z))
            start, start_z = token, z
            token, z = below, below_z
            searching = (count + 1 < row.top_k) & (token < vocab_size)
        else:
            end, end_z = token, z
            token, z = above, above_z
            searching = token < vocab_size
    return answer


@triton.jit
def _survey(
    row,
    token,
    z,
    start,
    start_z,
    end,
    end_z,
    rules,
    vocab_size,
    CHUNK: tl.constexpr,
):
    """How many tokens rank before `token`, their mass, and whom to ask about next.

    That is the token of best score, with its z, of those between `start` and `token` and of those
    between `token` and `end`; `vocab_size` where there is none.
    """
    count = tl.zeros([CHUNK // FOLD], tl.int32)
    mass = tl.zeros([CHUNK // FOLD], tl.int64)
    above_score, above, above_z = float("-inf"), vocab_size, z
    below_score, below, below_z = float("-inf"), vocab_size, z
    for first in range(0, vocab_size, CHUNK):
        other = first + tl.arange(0, CHUNK)
        raw = _load(row.logits, other, vocab_size)
        logit = adjusted(raw, first, row.slot, row.needs, rules, vocab_size, CHUNK)
        other_z = tl.div_rn(logit - row.top, row.temperature)
        likelihood = tl.exp(other_z)
        before = _ranks_before(other_z, other, z, token)
        count += tl.sum(_folded(before.to(tl.int32)), 1)
        mass += tl.sum(_folded(tl.where(before, _mass(likelihood), 0)), 1)
        asked = _ranks_before(start_z, start, other_z, other)
        asked &= before | _ranks_before(other_z, other, end_z, end)
        asked &= (other != token) & (other_z >= row.floor)
        asked &= (likelihood >= row.min_p) & (likelihood > 0)
        # Few chunks have such a token.
        if tl.max(asked.to(tl.int32)) > 0:
            score = other_z + gumbel_noise(row.seed, row.position, first, CHUNK)
            upper = tl.where(asked & before, score, float("-inf"))
            best, winner, winner_z = _best(upper, other, other_z, vocab_size)
            if best > above_score:
                above_score, above, above_z = best, winner, winner_z
            lower = tl.where(asked & ~before, score, float("-inf"))
            best, winner, winner_z = _best(lower, other, other_z, vocab_size)
            if best > below_score:
                below_score, below, below_z = best, winner, winner_z
    return tl.sum(count), tl.sum(mass), above, above_z, below, below_z


@triton.jit
def _best(score, token, value, vocab_size):
    """The best score, the first token that has it, and that token's value."""
    best = tl.max(score)
    winner = tl.min(tl.where(score == best, token, vocab_size))
    return best, winner, tl.max(tl.where(token == winner, value, float("-inf")))


@triton.jit
def _folded(values):
    """A chunk as one row for each thread: what a loop adds up then takes an eighth of registers."""
    return tl.reshape(values, [values.numel // FOLD, FOLD], can_reorder=True)


@triton.jit
def _ranks_before(z, token, other_z, other):
    return (z > other_z) | ((z == other_z) & (token < other))


@triton.jit
def _mass(likelihood):
    return (likelihood * _MASS).to(tl.int64)


# --- what tiles say together ----------------------------------------------------------------------


@triton.jit
def _likeliest(tiles, row, num_tiles, vocab_size, TILES: tl.constexpr):
    """The row's greatest logit, whose it is, and whether there is nothing to choose from."""
    index = tl.arange(0, TILES)
    here, inside = row * num_tiles + index, index < num_tiles
    tops = tl.load(tiles.top + here, inside, float("-inf"))
    broken = tl.max(tl.load(tiles.broken + here, inside, 0))
    top = tl.max(tops)
    likeliest = tl.load(tiles.likeliest + here, inside, vocab_size)
    token = tl.min(tl.where(tops == top, likeliest, vocab_size))
    return top, token, (broken > 0) | (top == float("-inf")) | (top == float("inf")) | (top != top)


@triton.jit
def _drawn(tiles, row, num_tiles, top, temperature, vocab_size, TILES: tl.constexpr):
    """The token of best score of all, and its logit."""
    index = tl.arange(0, TILES)
    here, inside = row * num_tiles + index, index < num_tiles
    tops = tl.load(tiles.top + here, inside, float("-inf"))
    score = tl.load(tiles.score + here, inside, float("-inf"))
    score += tl.div_rn(tops - top, temperature)
    drawn = tl.load(tiles.drawn + here, inside, vocab_size)
    logit = tl.load(tiles.drawn_logit + here, inside, float("-inf"))
    _, token, logit = _best(score, drawn, logit, vocab_size)
    return token, logit


class Weighed(NamedTuple):
    """What `weigh` found about a row's drawn token.

    Attributes:
        total: mass of what min-p keeps.
        num_before, mass_before: tokens that rank before it, and how likely these are.
        drawn, drawn_z: who has the best score of these.
    """

    total: tl.tensor
    num_before: tl.tensor
    mass_before: tl.tensor
    drawn: tl.tensor
    drawn_z: tl.tensor


@triton.jit
def _weighed(tiles, row, num_tiles, vocab_size, TILES: tl.constexpr):
    index = tl.arange(0, TILES)
    here, inside = row * num_tiles + index, index < num_tiles
    score = tl.load(tiles.next_score + here, inside, float("-inf"))
    drawn = tl.load(tiles.next_drawn + here, inside, vocab_size)
    z = tl.load(tiles.next_z + here, inside, float("-inf"))
    _, drawn, drawn_z = _best(score, drawn, z, vocab_size)
    return Weighed(
        tl.sum(tl.load(tiles.total + here, inside, 0)),
        tl.sum(tl.load(tiles.num_before + here, inside, 0)),
        tl.sum(tl.load(tiles.mass_before + here, inside, 0)),
        drawn,
        drawn_z,
    )


@triton.jit
def _of_top_tiles(tiles, row, num_tiles, top, temperature, k, min_p, TILES: tl.constexpr):
    """Bounds from the tiles' likeliest tokens: of the k-th likeliest token's z, and of mass.

    The k greatest of them are k tokens: the k-th likeliest of all is as likely as the last of
    these, and the k likeliest together have their mass. Without top-k, or with more than there are
    tiles, every token may be kept.
    """
    index = tl.arange(0, TILES)
    tops = tl.load(tiles.top + row * num_tiles + index, index < num_tiles, float("-inf"))
    z = tl.div_rn(tl.sort(tops, descending=True) - top, temperature)
    likelihood = tl.exp(z)
    mass = tl.where((index < k) & (likelihood >= min_p), _mass(likelihood), 0)
    return tl.max(tl.where(index == k - 1, z, float("-inf"))), tl.sum(mass)


@triton.jit
def _is_live(slot, done, null_slot):
    return (slot != null_slot) & (tl.load(done + slot) == 0)


@triton.jit
def _is_filtered(slot, rules):
    top_k, top_p = tl.load(rules.top_k + slot), tl.load(rules.top_p + slot)
    return (top_k > 0) | (top_p < 1) | (tl.load(rules.min_p + slot) > 0)


@triton.jit
def _load(logits, token, vocab_size):
    return tl.load(logits + token, token < vocab_size, float("-inf")).to(tl.float32)


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
