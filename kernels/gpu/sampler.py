"""Sampling on a GPU: `kernels.step_sampling.sample_and_commit` in three launches and no sort.

    scan     (tile, row)   the tile's likeliest token, and the one of best score z + noise
    weigh    (tile, row)   of rows with filters: how many tokens of the tile rank before the row's
                           drawn token, and how likely they are
    settle   (row)         greedy: the likeliest; else the drawn token; then what becomes of it

A vocabulary is cut into tiles, so that a single row occupies many processors. The logits stay as
they are: whoever reads them adjusts them again.

**Filters without a threshold.** Min-p, top-k and top-p each keep the first so many tokens of the
ranking. The token of best score among all is therefore the answer if it is kept itself, which two
sums tell: how many tokens rank before it, and how likely these are together. If it is not kept,
nothing from it downwards is, and the token of best score among those *before* it is the next to be
asked. The first is kept as often as the filters keep mass, so `weigh` nearly always has the answer
ready, and `settle` searches the vocabulary only in the rare rows that are left. Each round cuts
what is left at a random place: a few rounds reach any depth.

Top-k with top-p needs one more number, the mass of the k likeliest. Bounds of it decide most rows;
the others find the k-th token by partitioning at random pivots.

Masses are sums of whole numbers, 2⁴⁰ e^z cut off below the point: they do not depend on the order
of addition. z is rounded exactly as in the specification, so ranks, ties among them, are the same.
e^z and the noise are of float32, where the specification's are of float64: another token is drawn
only if two scores, or a mass and top-p's bound, differ by less than a few parts in a million.

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
CHUNK_WARPS = 16
FOLD = tl.constexpr(CHUNK // (32 * CHUNK_WARPS))

_STOP, _LENGTH, _ERROR = tl.constexpr(STOP), tl.constexpr(LENGTH), tl.constexpr(ERROR)
_NO_TOKEN = tl.constexpr(NO_TOKEN)
_MASS = tl.constexpr(2.0**40)
# Odd, so that a token's pivot number can be turned back into the token: their product is 1 mod 2³².
_MIX, _UNMIX = tl.constexpr(-1640531527), tl.constexpr(340573321)
_NO_PIVOT = tl.constexpr(-(2**31))


class Tiles(NamedTuple):
    """What the launches tell each other, [rows, tiles] each.

    Attributes:
        top, likeliest: the greatest logit after steps 1 to 4, and whose it is.
        broken: whether the model's logits hold a NaN or +∞.
        score, drawn, drawn_logit: the best z + noise with z relative to `top`, and whose it is.
        count, mass: tokens before the row's drawn one.
        total: mass of what min-p keeps.
    """

    top: torch.Tensor
    likeliest: torch.Tensor
    broken: torch.Tensor
    score: torch.Tensor
    drawn: torch.Tensor
    drawn_logit: torch.Tensor
    count: torch.Tensor
    mass: torch.Tensor
    total: torch.Tensor

    @classmethod
    def empty(cls, max_rows: int, vocab_size: int, device: torch.device) -> "Tiles":
        """For steps of up to so many rows; what it holds between them means nothing."""
        shape = (max_rows, triton.cdiv(vocab_size, TILE))
        real, whole, long = torch.float32, torch.int32, torch.int64
        dtypes = (real, whole, whole, real, whole, real, whole, long, long)
        return cls(*(torch.empty(shape, dtype=dtype, device=device) for dtype in dtypes))

    @staticmethod
    def num_bytes(max_rows: int, vocab_size: int) -> int:
        """What `empty` takes."""
        return max_rows * triton.cdiv(vocab_size, TILE) * (7 * 4 + 2 * 8)


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
    floor: tl.tensor


@triton.jit
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
    logit = adjusted(raw, first, slot, needs, rules, vocab_size, GRAMMAR, TILE)
    top = tl.max(logit)
    tl.store(tiles.top + here, top)
    tl.store(tiles.likeliest + here, tl.min(tl.where(logit == top, token, vocab_size)))
    temperature = tl.load(rules.temperature + slot)
    if temperature > 0:
        seed = tl.load(rules.seed + slot)
        z = tl.div_rn(logit - tl.where(top == float("-inf"), 0.0, top), temperature)
        score = z + gumbel_noise(seed, position, first, TILE)
        best = tl.max(score)
        drawn = tl.min(tl.where(score == best, token, vocab_size))
        tl.store(tiles.score + here, best)
        tl.store(tiles.drawn + here, drawn)
        tl.store(tiles.drawn_logit + here, tl.max(tl.where(token == drawn, logit, float("-inf"))))


@triton.jit
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
    logit = adjusted(raw, first, slot, needs, rules, vocab_size, GRAMMAR, TILE)
    z, drawn_z = tl.div_rn(logit - top, temperature), tl.div_rn(drawn_logit - top, temperature)
    likelihood = tl.exp(z)
    mass = _mass(likelihood)
    before = _ranks_before(z, token, drawn_z, drawn)
    kept = likelihood >= tl.load(rules.min_p + slot)
    here = row * num_tiles + tl.program_id(0)
    tl.store(tiles.count + here, tl.sum(before.to(tl.int32)))
    tl.store(tiles.mass + here, tl.sum(tl.where(before, mass, 0)))
    tl.store(tiles.total + here, tl.sum(tl.where(kept, mass, 0)))


@triton.jit
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
            top_k = tl.load(rules.top_k + slot)
            this = Row(
                logits + row.to(tl.int64) * row_stride,
                slot,
                position,
                needs_of(slot, position, rules, GRAMMAR),
                top,
                temperature,
                top_k,
                tl.load(rules.top_p + slot),
                tl.load(rules.min_p + slot),
                tl.div_rn(_kth_top(tiles, row, num_tiles, top_k, TILES) - top, temperature),
            )
            index = tl.arange(0, TILES)
            here, inside = row * num_tiles + index, index < num_tiles
            token = _first_kept(
                this,
                token,
                tl.div_rn(logit - top, temperature),
                tl.sum(tl.load(tiles.count + here, inside, 0)),
                tl.sum(tl.load(tiles.mass + here, inside, 0)),
                tl.sum(tl.load(tiles.total + here, inside, 0)),
                rules,
                vocab_size,
                GRAMMAR,
                CHUNK,
            )
    token = tl.where(failed, 0, token)
    _commit(
        row, slot, position, token, failed, tokens, done, rules, token_ids, finish, vocab_size,
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
def _first_kept(
    row,
    token,
    z,
    count,
    mass,
    total,
    rules,
    vocab_size,
    GRAMMAR: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The kept token of best score.

    `token` has the best score of all; `count` and `mass` are of the tokens that rank before it,
    `total` of those that min-p keeps.
    """
    # Bounds of the mass that top-p takes its share of: what min-p and top-k keep.
    most, least = total, tl.where(row.top_k > 0, tl.zeros_like(total), total)
    searching = True
    while searching:
        likelihood = tl.exp(z)
        kept = (likelihood >= row.min_p) & ((row.top_k == 0) | (count < row.top_k))
        if kept & (row.top_p < 1):
            least = tl.maximum(least, mass + _mass(likelihood))
            if (least < most) & _is_share(mass, row.top_p, least, most):
                least = _mass_of_top_k(row, token, z, rules, vocab_size, GRAMMAR, CHUNK)
                most = least
            kept = mass.to(tl.float64) < row.top_p.to(tl.float64) * least.to(tl.float64)
        if kept:
            searching = False
        else:
            token = _best_before(row, token, z, rules, vocab_size, GRAMMAR, CHUNK)
            z = _z_of(row, token, rules, vocab_size, GRAMMAR)
            count, mass = _before(row, token, z, rules, vocab_size, GRAMMAR, CHUNK)
    return token


@triton.jit
def _is_share(mass, top_p, least, most):
    """Whether mass is at least top_p of `least` but not of `most`: which it is, is not known."""
    share, top_p = mass.to(tl.float64), top_p.to(tl.float64)
    return (share >= top_p * least.to(tl.float64)) & (share < top_p * most.to(tl.float64))


@triton.jit
def _before(row, token, z, rules, vocab_size, GRAMMAR: tl.constexpr, CHUNK: tl.constexpr):
    """How many tokens rank before one, and their mass."""
    count = tl.zeros([CHUNK // FOLD], tl.int32)
    mass = tl.zeros([CHUNK // FOLD], tl.int64)
    for first in range(0, vocab_size, CHUNK):
        other = first + tl.arange(0, CHUNK)
        other_z = _z(row, first, rules, vocab_size, GRAMMAR, CHUNK)
        before = _ranks_before(other_z, other, z, token)
        count += tl.sum(_folded(before.to(tl.int32)), 1)
        mass += tl.sum(_folded(tl.where(before, _mass(tl.exp(other_z)), 0)), 1)
    return tl.sum(count), tl.sum(mass)


@triton.jit
def _best_before(row, token, z, rules, vocab_size, GRAMMAR: tl.constexpr, CHUNK: tl.constexpr):
    """The token of best score among those that rank before one and may be kept."""
    best, winner = float("-inf"), token
    seed = tl.load(rules.seed + row.slot)
    for first in range(0, vocab_size, CHUNK):
        other = first + tl.arange(0, CHUNK)
        other_z = _z(row, first, rules, vocab_size, GRAMMAR, CHUNK)
        asked = _ranks_before(other_z, other, z, token)
        asked &= (other_z >= row.floor) & (tl.exp(other_z) >= row.min_p)
        # Few chunks have such a token.
        if tl.max(asked.to(tl.int32)) > 0:
            score = other_z + gumbel_noise(seed, row.position, first, CHUNK)
            score = tl.where(asked, score, float("-inf"))
            highest = tl.max(score)
            if highest > best:
                best = highest
                winner = tl.min(tl.where(score == highest, other, vocab_size))
    return winner


@triton.jit
def _mass_of_top_k(row, token, z, rules, vocab_size, GRAMMAR: tl.constexpr, CHUNK: tl.constexpr):
    """Mass of what min-p and top-k keep; the given token is one of these.

    The last of them ranks at or after (`token`, `z`) and before (`end`, `end_z`). Each round takes
    a token from between as pivot and learns on which side of it the last one is.
    """
    end, end_z = vocab_size, row.floor
    start, start_z = token, z
    answer = tl.zeros([], tl.int64)
    searching = True
    while searching:
        count = tl.zeros([CHUNK // FOLD], tl.int32)
        mass = tl.zeros([CHUNK // FOLD], tl.int64)
        upper = tl.full([CHUNK // FOLD], _NO_PIVOT, tl.int32)
        lower = tl.full([CHUNK // FOLD], _NO_PIVOT, tl.int32)
        for first in range(0, vocab_size, CHUNK):
            other = first + tl.arange(0, CHUNK)
            other_z = _z(row, first, rules, vocab_size, GRAMMAR, CHUNK)
            likelihood = tl.exp(other_z)
            before = _ranks_before(other_z, other, z, token)
            count += tl.sum(_folded(before.to(tl.int32)), 1)
            mass += tl.sum(_folded(tl.where(before, _mass(likelihood), 0)), 1)
            between = _ranks_before(other_z, other, end_z, end) & (likelihood >= row.min_p)
            between &= _ranks_before(start_z, start, other_z, other)
            between &= (other != token) & (likelihood > 0)
            number = tl.where(between, other * _MIX, _NO_PIVOT)
            above = tl.max(_folded(tl.where(before, number, _NO_PIVOT)), 1)
            below = tl.max(_folded(tl.where(before, _NO_PIVOT, number)), 1)
            upper, lower = tl.maximum(upper, above), tl.maximum(lower, below)
        rank = tl.sum(count)
        if rank < row.top_k:
            answer = tl.sum(mass) + _mass(tl.exp(z))
            start, start_z = token, z
            number = tl.max(lower)
            searching = (rank + 1 < row.top_k) & (number != _NO_PIVOT)
        else:
            end, end_z = token, z
            number = tl.max(upper)
            searching = number != _NO_PIVOT
        if searching:
            token = number * _UNMIX
            z = _z_of(row, token, rules, vocab_size, GRAMMAR)
    return answer


@triton.jit
def _z_of(row, token, rules, vocab_size, GRAMMAR: tl.constexpr):
    return tl.max(_z(row, token, rules, vocab_size, GRAMMAR, 1))


@triton.jit
def _z(row, first, rules, vocab_size, GRAMMAR: tl.constexpr, BLOCK: tl.constexpr):
    """z of the tokens `first` to `first + BLOCK - 1`."""
    raw = _load(row.logits, first + tl.arange(0, BLOCK), vocab_size)
    logit = adjusted(raw, first, row.slot, row.needs, rules, vocab_size, GRAMMAR, BLOCK)
    return tl.div_rn(logit - row.top, row.temperature)


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
    token = tl.min(tl.where(score == tl.max(score), drawn, vocab_size))
    logit = tl.load(tiles.drawn_logit + here, inside, float("-inf"))
    return token, tl.max(tl.where(drawn == token, logit, float("-inf")))


@triton.jit
def _kth_top(tiles, row, num_tiles, k, TILES: tl.constexpr):
    """The k-th greatest of the tiles' greatest logits; -∞ where k is 0 or above `num_tiles`.

    k tokens are at least as likely, so the k-th likeliest is.
    """
    index = tl.arange(0, TILES)
    here = row * num_tiles + index
    tops = tl.load(tiles.top + here, index < num_tiles, float("-inf"))
    ranked = tl.sort(tops, descending=True)
    return tl.max(tl.where(index == k - 1, ranked, float("-inf")))


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
