"""Philox4x32-10: random words as a pure function of (key, counter).

A counter of four 32-bit words and a key of two go through ten rounds of

    (c0, c1, c2, c3) ← (hi(M1·c2) ⊕ c1 ⊕ k0,  lo(M1·c2),  hi(M0·c0) ⊕ c3 ⊕ k1,  lo(M0·c0))

where the key is bumped by the Weyl constants between rounds. Sampling uses it so:

    key     = (low, high word of the sequence's seed)
    counter = (position, token id // 4, 0, 0)
    noise of token id = output word token id % 4

so that any token's noise is found without the others', and depends on neither batch nor history.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), whose
known-answer vectors the tests use.
"""

import torch

ROUNDS = 10
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
WORD = 0xFFFFFFFF


def philox4x32(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random words for each counter.

    Args:
        counter: four int64 tensors of words 0 to 2³²-1 that broadcast together.
        key: two int64 tensors of such words that broadcast with them.

    Returns:
        Four int64 tensors of words, uniform on 0 to 2³²-1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product wraps modulo 2⁶⁴; both halves of it are right all the same.
        high, low = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((low >> 32) & WORD) ^ c1 ^ k0,
            low & WORD,
            ((high >> 32) & WORD) ^ c3 ^ k1,
            high & WORD,
        )
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


def gumbel_noise(seed: torch.Tensor, position: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise for every token of the vocabulary.

    A word w becomes u = (w + ½) / 2³², inside (0, 1), and the noise is -log(-log u).

    Args:
        seed: [rows] int64, the bit pattern of the unsigned seed.
        position: [rows] int64, the index that the sampled token will take in its sequence.
        vocab_size: tokens in the vocabulary.

    Returns:
        [rows, vocab_size] float64.
    """
    blocks = torch.arange((vocab_size + 3) // 4, device=seed.device)
    zero = torch.zeros_like(blocks)
    words = philox4x32(
        (position[:, None] & WORD, blocks, zero, zero),
        ((seed & WORD)[:, None], ((seed >> 32) & WORD)[:, None]),
    )
    word = torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]
    return -torch.log(-torch.log((word.double() + 0.5) * 2.0**-32))
