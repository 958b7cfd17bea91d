"""Narrow floating point types in Triton: with the cure as on a GPU, and why there is a cure."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.gpu.conftest import INTERPRETED
from tests.kernels.gpu.interpreter import uncured

SIZE = 16


@triton.jit
def multiply_add(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    left, right = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, left * right + left)


@triton.jit
def cast(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    product = tl.load(x + at).to(tl.float32) * tl.load(y + at).to(tl.float32)
    tl.store(out + at, product.to(out.dtype.element_ty))


@triton.jit
def total(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(y + at) * 0 + tl.sum(tl.load(x + at)))


@triton.jit
def larger(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    left, right = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, tl.where((left > right) & (left != right), left, right))


@triton.jit
def outer(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    square = tl.zeros([SIZE, SIZE], x.dtype.element_ty)
    left, right = tl.load(x + at)[:, None] + square, tl.load(y + at)[None, :] + square
    tl.store(out + at, tl.sum(tl.dot(left, right), 1).to(out.dtype.element_ty))


Expected = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# A GPU may round sums and products at other places: two units in the last place of a bfloat16 of 8
# to 16, which the sum is.
ROUNDING = 2**-3
CASES: dict[str, tuple[Any, Expected, float]] = {
    "multiply_add": (multiply_add, lambda x, y: x * y + x, ROUNDING),
    "cast": (cast, lambda x, y: x * y, 0.0),
    "total": (total, lambda x, y: x.sum().expand(SIZE), ROUNDING),
    "larger": (larger, torch.maximum, 0.0),
    "outer": (outer, lambda x, y: (x.float() * SIZE * y.float().sum()).to(x.dtype), 1.0),
}


def operands(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Both signs; most products lie between two bfloat16, one rounds up to a power of two."""
    x = torch.linspace(-2.0, 3.0, SIZE).bfloat16()
    y = torch.linspace(1.0, -1.4, SIZE).bfloat16()
    x[4], y[4] = 1.9921875, 1.0078125
    return x.to(device), y.to(device)


def run(kernel: Any, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """What the kernel makes of the operands."""
    x, y = operands(device)
    out = torch.full((SIZE,), float("nan"), device=device).to(dtype)
    kernel[(1,)](x, y, out, SIZE)
    return out


def wrong(name: str, device: torch.device) -> bool:
    """Whether the outcome is not torch's."""
    kernel, expected, tolerance = CASES[name]
    want = expected(*operands(device)).float()
    return not torch.allclose(run(kernel, device).float(), want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_computed_as_torch_does(name: str, device: torch.device) -> None:
    assert not wrong(name, device)


@pytest.mark.skipif(not INTERPRETED, reason="the cure is for the interpreter")
@pytest.mark.parametrize("name", CASES)
def test_the_interpreter_alone_is_wrong(name: str, device: torch.device) -> None:
    with uncured():
        assert wrong(name, device)
    assert not wrong(name, device)


@pytest.mark.skipif(
    not INTERPRETED and torch.cuda.get_device_capability() < (8, 9), reason="has no float8"
)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_is_rounded_to_the_nearest(dtype: torch.dtype, device: torch.device) -> None:
    x, y = operands(device)
    torch.testing.assert_close(
        run(cast, device, dtype).float(), (x.float() * y.float()).to(dtype).float(), rtol=0, atol=0
    )
