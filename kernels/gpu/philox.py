"""`kernels.philox` inside a kernel: the same words, and their noise in float32.

A word w is u = (w + ½) / 2³², and the noise -log(-log u). The largest noise decides draws, and it
comes from u so close to 1 that float32 cannot tell it from 1. So above ½ the inner logarithm is
taken of the distance v = 1 - u, which float32 holds to its last bit:

    -log(1 - v) = 2 artanh(s) = 2 (s + s³/3 + s⁵/5 + …),  s = v / (2 - v)
"""

import triton
import triton.language as tl


@triton.jit
def gumbel_noise(seed, position, first, COUNT: tl.constexpr):
    """Standard Gumbel noise of the tokens `first` to `first + COUNT - 1`, float32.

    Args:
        seed: int64, bit pattern of the unsigned seed.
        position: int32, the index that the sampled token takes in its sequence.
        first: int32, a multiple of 4.
        COUNT: a power of two, at least 4.
    """
    block = (first // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    zero = tl.zeros_like(block)
    w0, w1, w2, w3 = tl.philox(seed, zero + position.to(tl.uint32), block, zero, zero)
    return noise_of(tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3)))


@triton.jit
def noise_of(word):
    """The noise of random words, uint32."""
    u = (word.to(tl.float32) + 0.5) * 2.0**-32
    v = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.0**-32
    s = v / (2.0 - v)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11)))))
    return -tl.log(tl.where(u < 0.5, -tl.log(u), 2 * s * series))
