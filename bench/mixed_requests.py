"""Requests of mixed length, the same for every system that is compared.

Lengths are uniform between the bounds, prompts are random token ids without special tokens, every
answer runs to its full length (the end token is ignored).
"""

import random
from dataclasses import dataclass

from quire.bench.load import TOKEN_IDS


@dataclass(frozen=True, slots=True)
class MixedRequest:
    """A prompt and how many tokens to answer."""

    token_ids: tuple[int, ...]
    output_len: int


def mixed_requests(
    count: int, *, input_len: tuple[int, int], output_len: tuple[int, int], seed: int
) -> list[MixedRequest]:
    """`count` requests with lengths within the given bounds, both ends included."""
    dice = random.Random(seed)
    return [
        MixedRequest(
            tuple(dice.choices(TOKEN_IDS, k=dice.randint(*input_len))), dice.randint(*output_len)
        )
        for _ in range(count)
    ]


def uniform_requests(
    count: int, *, input_len: int, output_len: int, seed: int
) -> list[MixedRequest]:
    """`count` requests of one shape."""
    return mixed_requests(
        count, input_len=(input_len, input_len), output_len=(output_len, output_len), seed=seed
    )
