"""Penalties and draws of `kernels.sampling` for a CPU: fused passes over a row, in place.

Noise is drawn only where it can matter.

No filters. A random word u makes the noise -log(-log u), which is at most -log(1 - u), and the bits
of a float, read as a whole number, say what its logarithm is at least. So loops that become vectors
tell the most that each token of a tile can score; the two logarithms are taken where that is enough
to beat the winner so far. The result is that of the specification, exactly.

Filters. A histogram of z (a quarter wide each bin) tells how far down the ranking top-k and top-p
can reach; the tokens above that point are sorted, the rest is never looked at again.
"""

import math

import numba
import numpy as np
import numpy.typing as npt
import torch

from kernels.jit import inner, jit
from kernels.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1
from kernels.sampling_inputs import DrawParams, PenaltyTables

_M0, _M1 = np.uint64(MULTIPLIER_0), np.uint64(MULTIPLIER_1)
_W0, _W1 = np.uint64(WEYL_0), np.uint64(WEYL_1)
_WORD = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

_TILE = 256
_HALF = np.float32(0.5)
# -log(x / 2^32) is at most _LOG_RANGE - _LOG_PER_BIT * (the bits of x), but for the rounding.
_LOG_RANGE = np.float32(math.log(2) * (127 + 32))
_LOG_PER_BIT = np.float32(math.log(2) / 2**23)
_ROUNDING = np.float32(1e-3)
_BINS = 512
_BINS_PER_UNIT = 4.0


def penalize_rows(
    logits: torch.Tensor,
    row: torch.Tensor,
    slot: torch.Tensor,
    tables: PenaltyTables,
    penalties: torch.Tensor,
) -> None:
    """`kernels.sampling.penalize_` for tensors on the CPU; the same arguments."""
    _penalize_rows(
        logits.numpy(),
        row.numpy(),
        slot.numpy(),
        tables.in_prompt.numpy(),
        tables.output_count.numpy(),
        *penalties.numpy(),
    )


def draw_rows(logits: torch.Tensor, params: DrawParams, position: torch.Tensor) -> torch.Tensor:
    """`kernels.sampling.draw` for tensors on the CPU; the same arguments and result."""
    rows, top_k, top_p, min_p = (
        column.numpy() for column in (logits, params.top_k, params.top_p, params.min_p)
    )
    has_filters = (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
    chosen = (rows.argmax(axis=1), params.temperature.numpy(), params.seed.numpy())
    tokens = np.empty(len(rows), np.int64)
    if not has_filters.all():
        unfiltered = np.flatnonzero(~has_filters)
        _draw_unfiltered(unfiltered, rows, *chosen, position.numpy(), tokens)
    if has_filters.any():
        filtered, filters = np.flatnonzero(has_filters), (top_k, top_p, min_p)
        _draw_filtered(filtered, rows, *chosen, position.numpy(), *filters, tokens)
    return torch.from_numpy(tokens)


@inner(fast=False, inlined=True)
def _words(key: np.uint64, position: np.uint64, block: np.uint64):  # type: ignore[no-untyped-def]
    k0, k1 = key & _WORD, key >> _32
    c0, c1, c2, c3 = position & _WORD, block, np.uint64(0), np.uint64(0)
    for _ in range(ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _WORD, (p0 >> _32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
    return c0, c1, c2, c3


@inner(fast=False)
def _noise(word: np.uint64) -> float:
    return -math.log(-math.log((np.float64(word) + 0.5) * 2.0**-32))


@inner(fast=False)
def _noise_of(key: np.uint64, position: np.uint64, token: int) -> float:
    return _noise(_words(key, position, np.uint64(token >> 2))[token & 3])


@inner(fast=False)
def _fill(words: npt.NDArray[np.uint32], key: np.uint64, position: np.uint64, first: int) -> None:
    for block in range(len(words) >> 2):
        four = _words(key, position, np.uint64((first >> 2) + block))
        words[4 * block] = four[0]
        words[4 * block + 1] = four[1]
        words[4 * block + 2] = four[2]
        words[4 * block + 3] = four[3]


@inner(fast=False)
def _draw_from_all(  # type: ignore[no-untyped-def]
    logits, likeliest: int, temperature: np.float32, key: np.uint64, position: np.uint64
) -> int:
    largest = logits[likeliest]
    winner, best = likeliest, _noise_of(key, position, likeliest)
    words, most = np.empty(_TILE, np.uint32), np.empty(_TILE, np.float32)
    rest = np.empty(_TILE, np.float32)
    bits = rest.view(np.int32)
    for first in range(0, len(logits), _TILE):
        tile = logits[first : first + _TILE]
        _fill(words, key, position, first)
        for i in range(_TILE):
            rest[i] = np.float32(words[i] ^ np.uint32(_WORD)) + _HALF
        for i in range(len(tile)):
            z = (tile[i] - largest) / temperature
            most[i] = z + (_LOG_RANGE - _LOG_PER_BIT * np.float32(bits[i]))
        enough = np.float32(best) - _ROUNDING
        num_promising = 0
        for i in range(len(tile)):
            num_promising += most[i] >= enough
        if num_promising == 0:
            continue
        for i in range(len(tile)):
            if most[i] >= enough:
                z = (tile[i] - largest) / temperature
                score = np.float64(z) + _noise(np.uint64(words[i]))
                if score > best or (score == best and first + i < winner):
                    best, winner = score, first + i
    return winner


@inner(fast=False)
def _ranked(
    z: npt.NDArray[np.float32], top_k: int, top_p: float, min_p: float
) -> npt.NDArray[np.int64]:
    """Token ids that steps 6 to 8 keep, likeliest first."""
    count = np.zeros(_BINS, np.int64)
    mass = np.zeros(_BINS, np.float64)
    for token in range(len(z)):
        p = math.exp(z[token])
        if p > 0.0 and p >= min_p:
            place = min(int(-z[token] * _BINS_PER_UNIT), _BINS - 1)
            count[place] += 1
            mass[place] += p
    # Without top-k the mass wanted is known now; with it, only after the k likeliest are.
    wanted = mass.sum() * top_p if top_k == 0 and top_p < 1.0 else np.inf
    num, got, last = 0, 0.0, 0
    for place in range(_BINS):
        num += count[place]
        got += mass[place]
        last = place
        if got >= wanted or (0 < top_k <= num):
            break
    lowest = -np.inf if last == _BINS - 1 else -(last + 1) / _BINS_PER_UNIT
    tokens = np.empty(num, np.int64)
    num = 0
    for token in range(len(z)):
        if z[token] > lowest:
            p = math.exp(z[token])
            if p > 0.0 and p >= min_p:
                tokens[num] = token
                num += 1
    tokens = tokens[np.argsort(-z[tokens], kind="mergesort")]
    if top_k > 0:
        tokens = tokens[:top_k]
        wanted = np.exp(z[tokens].astype(np.float64)).sum() * top_p if top_p < 1.0 else np.inf
    got = 0.0
    for rank in range(len(tokens)):
        if got >= wanted:
            return tokens[:rank]
        got += math.exp(z[tokens[rank]])
    return tokens


# Of one thread: a row takes less than it takes to wake another.
@jit(fast=False)
def _draw_unfiltered(  # type: ignore[no-untyped-def]
    rows, logits, likeliest, temperature, seed, position, tokens
) -> None:
    for row in rows:
        key, place = np.uint64(seed[row]), np.uint64(position[row])
        # Without a distribution to draw from; the caller ends such rows.
        tokens[row] = 0
        if np.isfinite(logits[row, likeliest[row]]):
            tokens[row] = _draw_from_all(logits[row], likeliest[row], temperature[row], key, place)


@jit(parallel=True, fast=False)
def _draw_filtered(  # type: ignore[no-untyped-def]
    rows, logits, likeliest, temperature, seed, position, top_k, top_p, min_p, tokens
) -> None:
    for i in numba.prange(len(rows)):
        row = rows[i]
        key, place = np.uint64(seed[row]), np.uint64(position[row])
        largest = logits[row, likeliest[row]]
        tokens[row] = 0
        if not np.isfinite(largest):
            continue
        z = (logits[row] - largest) / temperature[row]
        best = -np.inf
        for token in _ranked(z, top_k[row], top_p[row], min_p[row]):
            score = np.float64(z[token]) + _noise_of(key, place, token)
            if score > best or (score == best and token < tokens[row]):
                best = score
                tokens[row] = token


@jit(parallel=True, fast=False)
def _penalize_rows(  # type: ignore[no-untyped-def]
    logits, row, slot, in_prompt, output_count, repetition, presence, frequency
) -> None:
    for i in numba.prange(len(row)):
        values, seen, counts = logits[row[i]], in_prompt[slot[i]], output_count[slot[i]]
        for token in range(len(values)):
            count = counts[token]
            if count > 0 or seen[token]:
                value = values[token]
                value = value / repetition[i] if value > 0 else value * repetition[i]
                if count > 0:
                    value -= frequency[i] * np.float32(count) + presence[i]
                values[token] = value
