"""RMSNorm on a GPU, alone and after the residual's addition: one pass over memory.

    y[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight           (arXiv 1910.07467)

Shapes: x, residual and y are ``[num_tokens, hidden]``, weight is ``[hidden]``. A program holds one
row in registers, so a row is read once. Sums are float32; the normed row is rounded to the weight's
type before it is multiplied, as `kernels.reference` does.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.checks import require, require_dtype

MAX_HIDDEN = 65536


@triton.jit
def weighted(x, scale, weight):
    """x · scale · weight, float32; rounded to the weight's type in between."""
    return (x * scale).to(weight.dtype).to(tl.float32) * weight.to(tl.float32)


@triton.jit
def rms_norm_kernel(x, residual, weight, out, eps, HIDDEN: tl.constexpr, WIDTH: tl.constexpr):
    """One row; `residual` is None where nothing is to be added."""
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    at = tl.arange(0, WIDTH)
    inside = at < HIDDEN
    values = tl.load(x + row + at, inside, 0.0)
    if residual is not None:
        total = values.to(tl.float32) + tl.load(residual + row + at, inside, 0.0).to(tl.float32)
        values = total.to(values.dtype)
        tl.store(residual + row + at, values, inside)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / HIDDEN + eps)
    y = weighted(wide, scale, tl.load(weight + at, inside, 0.0))
    tl.store(out + row + at, y.to(values.dtype), inside)


def num_warps(hidden: int) -> int:
    """So many that a thread holds 16 elements of a row: two loads of 16 bytes."""
    width: int = triton.next_power_of_2(hidden)
    return min(max(width // (16 * 32), 1), 16)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`kernels.reference.rms_norm`.

    Raises:
        ValueError: a shape, type or device is not what it must be.
    """
    return _launch(x, None, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """`kernels.reference.add_rms_norm`.

    Raises:
        ValueError: a shape, type or device is not what it must be.
    """
    require("residual", residual, x, x.shape)
    require_dtype("residual", residual, x.dtype)
    return _launch(x, residual, weight, eps)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    num_tokens, hidden = x.shape
    if hidden > MAX_HIDDEN:
        raise ValueError(f"x has rows of {hidden}; a program holds at most {MAX_HIDDEN}")
    require("x", x, x, (num_tokens, hidden))
    require("weight", weight, x, (hidden,))
    require_dtype("weight", weight, x.dtype, torch.float32)
    out = torch.empty_like(x)
    if num_tokens:
        rms_norm_kernel[(num_tokens,)](
            x,
            residual,
            weight,
            out,
            eps,
            HIDDEN=hidden,
            WIDTH=triton.next_power_of_2(hidden),
            num_warps=num_warps(hidden),
        )
    return out
