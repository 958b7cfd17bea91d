"""What the sampler's launches tell each other: a few numbers for each tile of each row.

`kernels.gpu.sampler` says what they are for.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.gpu.sampler_filters import Weighed, best_of, mass_of

TILE = 2048


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


@triton.jit
def likeliest_of(tiles, row, num_tiles, vocab_size, TILES: tl.constexpr):
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
def drawn_of(tiles, row, num_tiles, top, temperature, vocab_size, TILES: tl.constexpr):
    """The token of best score of all, and its logit."""
    index = tl.arange(0, TILES)
    here, inside = row * num_tiles + index, index < num_tiles
    tops = tl.load(tiles.top + here, inside, float("-inf"))
    score = tl.load(tiles.score + here, inside, float("-inf"))
    score += tl.div_rn(tops - top, temperature)
    drawn = tl.load(tiles.drawn + here, inside, vocab_size)
    logit = tl.load(tiles.drawn_logit + here, inside, float("-inf"))
    _, token, logit = best_of(score, drawn, logit, vocab_size)
    return token, logit


@triton.jit
def weighed_of(tiles, row, num_tiles, vocab_size, TILES: tl.constexpr):
    """What `weigh` found about the row's drawn token."""
    index = tl.arange(0, TILES)
    here, inside = row * num_tiles + index, index < num_tiles
    score = tl.load(tiles.next_score + here, inside, float("-inf"))
    drawn = tl.load(tiles.next_drawn + here, inside, vocab_size)
    z = tl.load(tiles.next_z + here, inside, float("-inf"))
    _, drawn, drawn_z = best_of(score, drawn, z, vocab_size)
    return Weighed(
        tl.sum(tl.load(tiles.total + here, inside, 0)),
        tl.sum(tl.load(tiles.num_before + here, inside, 0)),
        tl.sum(tl.load(tiles.mass_before + here, inside, 0)),
        drawn,
        drawn_z,
    )


@triton.jit
def bounds_of_top_k(tiles, row, num_tiles, top, temperature, k, min_p, TILES: tl.constexpr):
    """Bounds from the tiles' likeliest tokens: of the k-th likeliest token's z, and of mass.

    The k greatest of them are k tokens: the k-th likeliest of all is as likely as the last of
    these, and the k likeliest together have their mass. Without top-k, or with more than there are
    tiles, every token may be kept.
    """
    index = tl.arange(0, TILES)
    tops = tl.load(tiles.top + row * num_tiles + index, index < num_tiles, float("-inf"))
    z = tl.div_rn(tl.sort(tops, descending=True) - top, temperature)
    likelihood = tl.exp(z)
    mass = tl.where((index < k) & (likelihood >= min_p), mass_of(likelihood), 0)
    return tl.max(tl.where(index == k - 1, z, float("-inf"))), tl.sum(mass)
