"""The noise inside kernels against `kernels.philox`."""

import math

import pytest
import torch
import triton
import triton.language as tl

from kernels import philox
from kernels.gpu.philox import gumbel_noise, noise_of


@triton.jit
def noise_kernel(seed, position, out, first, COUNT: tl.constexpr):
    noise = gumbel_noise(tl.load(seed), tl.load(position), first, COUNT)
    tl.store(out + tl.arange(0, COUNT), noise)


@triton.jit
def noise_of_words_kernel(words, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, noise_of(tl.load(words + at).to(tl.uint32, bitcast=True)))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123_4567_89AB_CDEF])
@pytest.mark.parametrize("position", [0, 2**31 - 1])
def test_noise_is_that_of_the_specification(seed: int, position: int, device: torch.device) -> None:
    seeds, positions = torch.tensor([seed]), torch.tensor([position])
    expected = philox.gumbel_noise(seeds, positions, 4096)[0, 2048:]
    out = torch.full((2048,), math.nan, device=device)
    noise_kernel[(1,)](seeds.to(device), positions.int().to(device), out, 2048, COUNT=2048)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=4e-6, atol=4e-6)


def test_the_largest_and_smallest_noise(device: torch.device) -> None:
    half = 2**31
    words = torch.tensor([0, 1, 2, 9, half - 1, half, half + 1, 2**32 - 2, 2**32 - 1])
    words = torch.cat((words, 2**32 - 2 ** torch.arange(1, 24)))
    expected = -(-((words.double() + 0.5) * 2.0**-32).log()).log()
    patterns = torch.where(words < half, words, words - 2**32).int()
    out = torch.full((32,), math.nan, device=device)
    noise_of_words_kernel[(1,)](patterns.to(device), out, COUNT=32)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=4e-6, atol=4e-6)
