"""Philox4x32-10 gives the published words, and its noise is a Gumbel variable."""

import math

import pytest
import torch

from kernels.philox import gumbel_noise, philox4x32

Counter = tuple[int, int, int, int]
Key = tuple[int, int]


def words(counter: Counter, key: Key) -> Counter:
    a, b, c, d = (torch.tensor(word) for word in counter)
    low, high = (torch.tensor(word) for word in key)
    a, b, c, d = philox4x32((a, b, c, d), (low, high))
    return int(a), int(b), int(c), int(d)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_the_paper(counter: Counter, key: Key, expected: Counter) -> None:
    assert words(counter, key) == expected


def test_noise_of_a_token_is_its_lane_of_its_counter() -> None:
    seed, position = 0xFEDCBA9876543210, 77
    as_signed = torch.tensor([seed - (1 << 64)])
    noise = gumbel_noise(as_signed, torch.tensor([position]), 11)
    for token in range(11):
        word = words((position, token // 4, 0, 0), (0x76543210, 0xFEDCBA98))[token % 4]
        expected = -math.log(-math.log((word + 0.5) / 2**32))
        assert noise[0, token].item() == pytest.approx(expected, rel=1e-12)


def test_noise_has_the_moments_of_a_gumbel_variable() -> None:
    noise = gumbel_noise(torch.tensor([5, 6]), torch.tensor([0, 1]), 100_000).flatten()
    mean, variance = 0.5772156649, math.pi**2 / 6
    assert noise.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / len(noise)))
    assert noise.var().item() == pytest.approx(variance, rel=0.02)
