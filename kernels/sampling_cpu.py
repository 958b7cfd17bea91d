"""Penalties and draws of `kernels.sampling` for a CPU: fused passes over a row, in place.

Noise is drawn only where it can matter.

No filters. The winner so far scores s. A token with z beats it only if its noise exceeds s - z, and
32-bit noise never exceeds 22.9: most tokens need no random word, and a word needs its two
logarithms only if it passes a table of bounds at whole numbers. The result is that of the
specification, exactly.

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

_MOST_NOISE = -math.log(-math.log((2**32 - 0.5) / 2**32))
# A word that is not above _BOUND[n] makes noise of at most n.
_BOUND = np.array(
    [max(0, math.floor(2**32 * math.exp(-math.exp(-n)) - 2)) for n in range(24)], np.uint64
)
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
    tokens = np.empty(logits.shape[0], np.int64)
    _draw_rows(
        logits.numpy(),
        params.temperature.numpy(),
        params.top_k.numpy(),
        params.top_p.numpy(),
        params.min_p.numpy(),
        params.seed.numpy(),
        position.numpy(),
        tokens,
    )
    return torch.from_numpy(tokens)


@inner(fast=False)
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
def _draw_from_all(z: npt.NDArray[np.float32], key: np.uint64, position: np.uint64) -> int:
    winner = int(np.argmax(z))
    best = np.float64(z[winner]) + _noise_of(key, position, winner)
    for start in range(0, len(z), 4):
        end = min(start + 4, len(z))
        highest = z[start]
        for token in range(start + 1, end):
            highest = max(highest, z[token])
        if best - highest > _MOST_NOISE:
            continue
        words = _words(key, position, np.uint64(start >> 2))
        for token in range(start, end):
            need = best - np.float64(z[token])
            word = words[token - start]
            if need > _MOST_NOISE or (need >= 0 and word <= _BOUND[int(need)]):
                continue
            score = np.float64(z[token]) + _noise(word)
            if score > best or (score == best and token < winner):
                best, winner = score, token
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
    tokens = np.empty(num, np.int64)
    num = 0
    for token in range(len(z)):
        p = math.exp(z[token])
        if p > 0.0 and p >= min_p and min(int(-z[token] * _BINS_PER_UNIT), _BINS - 1) <= last:
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


@jit(parallel=True, fast=False)
def _draw_rows(  # type: ignore[no-untyped-def]
    logits, temperature, top_k, top_p, min_p, seed, position, tokens
) -> None:
    for row in numba.prange(len(logits)):
        largest = logits[row].max()
        if not np.isfinite(largest):
            tokens[row] = 0  # no distribution to draw from; the caller ends such rows
            continue
        z = (logits[row] - largest) / temperature[row]
        key, place = np.uint64(seed[row]), np.uint64(position[row])
        if top_k[row] == 0 and top_p[row] >= 1.0 and min_p[row] <= 0.0:
            tokens[row] = _draw_from_all(z, key, place)
            continue
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
