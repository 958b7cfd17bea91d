"""The gated activations in Triton against the specification."""

from collections.abc import Callable

import pytest
import torch

from kernels import reference
from kernels.gpu import activation
from tests.kernels.gpu.guarded import Guarded, mostly_equal, random

Activation = Callable[[torch.Tensor], torch.Tensor]
PAIRS: dict[str, tuple[Activation, Activation]] = {
    "silu": (activation.silu_mul, reference.silu_mul),
    "gelu_tanh": (activation.gelu_tanh_mul, reference.gelu_tanh_mul),
}
# Relative: of the activation and of the product, one rounding each.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 17])
@pytest.mark.parametrize("width", [1, 1023, 1024, 1025])
def test_gated_products_follow_the_specification(
    pair: tuple[Activation, Activation],
    width: int,
    num_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    ours, specified = pair
    gate_up = random(num_tokens, 2 * width, dtype=dtype, device=device) * 8
    given = Guarded(gate_up)
    expected = specified(gate_up)
    # 1 + tanh cancels where gates are negative: there the specification itself is that far off.
    rtol, atol = TOLERANCE[dtype], TOLERANCE[dtype] / 16 + 1e-5
    torch.testing.assert_close(ours(given.tensor), expected, rtol=rtol, atol=atol)
    assert torch.equal(given.tensor, gate_up)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_values_are_rounded_where_the_specification_rounds(
    dtype: torch.dtype, pair: tuple[Activation, Activation], device: torch.device
) -> None:
    ours, specified = pair
    gate_up = random(9, 1000, dtype=dtype, device=device)
    assert mostly_equal(ours(gate_up), specified(gate_up))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_extremes_are_finite_or_nan_as_they_should_be(
    pair: tuple[Activation, Activation], device: torch.device
) -> None:
    ours, specified = pair
    gates = torch.tensor([-1e30, -1e6, -200.0, -88.0, 0.0, 88.0, 200.0, 1e6, float("nan")])
    gate_up = torch.cat((gates, torch.ones(9)))[None].to(device)
    torch.testing.assert_close(
        ours(gate_up), specified(gate_up), atol=1e-30, rtol=1e-6, equal_nan=True
    )


def test_no_tokens_are_no_rows(device: torch.device) -> None:
    assert activation.silu_mul(torch.empty(0, 8, device=device)).shape == (0, 4)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="gate_up has rows of 7; gates and ups must be as many"):
        activation.silu_mul(torch.zeros(1, 7, device=device))
    with pytest.raises(ValueError, match=r"gate_up has strides .*; it must be contiguous"):
        activation.gelu_tanh_mul(torch.zeros(8, 2, device=device).T)
