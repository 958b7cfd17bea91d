"""RMSNorm in Triton against the specification."""

import pytest
import torch

from kernels import reference
from kernels.gpu import norm
from tests.kernels.gpu.guarded import Guarded, mostly_equal, random

EPS = 1e-5
# Of a sum's order: one rounding to the tensors' type, of values up to about 16.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2**-7, torch.bfloat16: 2**-4}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 17])
@pytest.mark.parametrize("hidden", [1, 7, 577, 4096])
def test_norms_follow_the_specification(
    hidden: int, num_tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    x = random(num_tokens, hidden, dtype=dtype, device=device)
    weight = random(hidden, seed=1, dtype=dtype, device=device)
    residual = random(num_tokens, hidden, seed=2, dtype=dtype, device=device) * 8
    given, stream = Guarded(x), Guarded(residual)
    atol = TOLERANCE[dtype]
    normed = norm.rms_norm(given.tensor, weight, EPS)
    torch.testing.assert_close(normed, reference.rms_norm(x, weight, EPS), rtol=0, atol=atol)
    added = norm.add_rms_norm(given.tensor, stream.tensor, weight, EPS)
    expected = reference.add_rms_norm(x, residual, weight, EPS)
    torch.testing.assert_close(added, expected, rtol=0, atol=atol)
    assert torch.equal(stream.tensor, residual), "the stream is the rounded sum"
    assert torch.equal(given.tensor, x), "what is added stays"
    assert given.untouched()
    assert stream.untouched()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_values_are_rounded_where_the_specification_rounds(
    dtype: torch.dtype, device: torch.device
) -> None:
    x, residual = (random(9, 577, seed=s, dtype=dtype, device=device) for s in (0, 1))
    weight = random(577, seed=2, dtype=dtype, device=device)
    expected = reference.rms_norm(x, weight, EPS)
    assert mostly_equal(norm.rms_norm(x, weight, EPS), expected)
    expected = reference.add_rms_norm(x, residual.clone(), weight, EPS)
    assert mostly_equal(norm.add_rms_norm(x, residual, weight, EPS), expected)


def test_every_row_is_normed_and_none_by_another(device: torch.device) -> None:
    x = random(123, 33, device=device) * torch.logspace(-3, 3, 123, device=device)[:, None]
    weight = random(33, seed=1, device=device)
    expected = reference.rms_norm(x, weight, EPS)
    torch.testing.assert_close(norm.rms_norm(x, weight, EPS), expected, atol=1e-5, rtol=1e-5)


def test_a_wider_weight_is_not_rounded(device: torch.device) -> None:
    x = random(3, 64, dtype=torch.bfloat16, device=device)
    weight = 1 + random(64, seed=1, device=device) / 64
    expected = reference.rms_norm(x, weight, EPS)
    assert expected.dtype == torch.bfloat16
    assert mostly_equal(norm.rms_norm(x, weight, EPS), expected)
    assert not mostly_equal(norm.rms_norm(x, weight.bfloat16(), EPS), expected)


def test_zeros_stay_zeros(device: torch.device) -> None:
    zeros = torch.zeros(2, 5, device=device)
    assert torch.equal(norm.rms_norm(zeros, torch.ones(5, device=device), EPS), zeros)


def test_no_tokens_are_no_rows(device: torch.device) -> None:
    none = torch.empty(0, 8, device=device)
    assert norm.rms_norm(none, torch.ones(8, device=device), EPS).shape == (0, 8)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x, weight = torch.zeros(2, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(ValueError, match=r"weight has shape \(7,\); it must be \(8,\)"):
        norm.rms_norm(x, weight[:7], EPS)
    with pytest.raises(ValueError, match=r"x has strides .*; it must be contiguous"):
        norm.rms_norm(torch.zeros(8, 8, device=device).T[:2], weight, EPS)
    with pytest.raises(ValueError, match="weight is float16; it must be float32"):
        norm.rms_norm(x, weight.half(), EPS)
    with pytest.raises(ValueError, match=r"residual has shape \(1, 8\); it must be \(2, 8\)"):
        norm.add_rms_norm(x, x[:1], weight, EPS)
    with pytest.raises(ValueError, match="residual is float16; it must be float32"):
        norm.add_rms_norm(x, x.half(), weight, EPS)
    with pytest.raises(ValueError, match="x has rows of 65537; a program holds at most 65536"):
        norm.rms_norm(torch.zeros(1, 65537, device=device), weight, EPS)
