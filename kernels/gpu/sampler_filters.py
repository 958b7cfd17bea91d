"""Which token of a row the filters keep, when the likeliest to be drawn is known.

`kernels.gpu.sampler` says why this needs neither a sort nor a threshold.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from kernels.gpu.adjust import Needs, adjusted, load_logits
from kernels.gpu.philox import gumbel_noise

CHUNK = 4096
CHUNK_WARPS = 8
_FOLD = tl.constexpr(CHUNK // (32 * CHUNK_WARPS))

_MASS = tl.constexpr(2.0**40)


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
def first_kept(row, token, z, weighed, least, rules, vocab_size, CHUNK: tl.constexpr):
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
            least = tl.maximum(least, mass + mass_of(likelihood))
            if _is_share(mass, row.top_p, most) & (not _is_share(mass, row.top_p, least)):
                least = _mass_of_top_k(row, token, z, rules, vocab_size, CHUNK)
                most = least
            kept = _is_share(mass, row.top_p, least)
        # The likeliest always is, whatever the numbers: the search ends.
        if kept | (count == 0):
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
            answer = mass + mass_of(tl.exp(z))
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
    count = tl.zeros([CHUNK // _FOLD], tl.int32)
    mass = tl.zeros([CHUNK // _FOLD], tl.int64)
    above_score, above, above_z = float("-inf"), vocab_size, z
    below_score, below, below_z = float("-inf"), vocab_size, z
    for first in range(0, vocab_size, CHUNK):
        other = first + tl.arange(0, CHUNK)
        raw = load_logits(row.logits, other, vocab_size)
        logit = adjusted(raw, first, row.slot, row.needs, rules, vocab_size, CHUNK)
        other_z = tl.div_rn(logit - row.top, row.temperature)
        likelihood = tl.exp(other_z)
        before = ranks_before(other_z, other, z, token)
        count += tl.sum(_folded(before.to(tl.int32)), 1)
        mass += tl.sum(_folded(tl.where(before, mass_of(likelihood), 0)), 1)
        asked = ranks_before(start_z, start, other_z, other)
        asked &= before | ranks_before(other_z, other, end_z, end)
        asked &= (other != token) & (other_z >= row.floor)
        asked &= (likelihood >= row.min_p) & (likelihood > 0)
        # Few chunks have such a token.
        if tl.max(asked.to(tl.int32)) > 0:
            score = other_z + gumbel_noise(row.seed, row.position, first, CHUNK)
            upper = tl.where(asked & before, score, float("-inf"))
            best, winner, winner_z = best_of(upper, other, other_z, vocab_size)
            if best > above_score:
                above_score, above, above_z = best, winner, winner_z
            lower = tl.where(asked & ~before, score, float("-inf"))
            best, winner, winner_z = best_of(lower, other, other_z, vocab_size)
            if best > below_score:
                below_score, below, below_z = best, winner, winner_z
    return tl.sum(count), tl.sum(mass), above, above_z, below, below_z


@triton.jit
def _folded(values):
    """A chunk as one row for each thread: what a loop adds up then takes an eighth of registers."""
    return tl.reshape(values, [values.numel // _FOLD, _FOLD], can_reorder=True)


@triton.jit
def best_of(score, token, value, vocab_size):
    """The best score, the first token that has it, and that token's value."""
    best = tl.max(score)
    winner = tl.min(tl.where(score == best, token, vocab_size))
    return best, winner, tl.max(tl.where(token == winner, value, float("-inf")))


@triton.jit
def ranks_before(z, token, other_z, other):
    return (z > other_z) | ((z == other_z) & (token < other))


@triton.jit
def mass_of(likelihood):
    return (likelihood * _MASS).to(tl.int64)
