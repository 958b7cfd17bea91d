"""The gated activations on a GPU: one pass over memory.

    silu_mul        out[t, i] = g / (1 + e^−g) · up
    gelu_tanh_mul   out[t, i] = g / 2 · (1 + tanh(√(2/π) · (g + 0.044715 · g³))) · up

with g = gate_up[t, i] and up = gate_up[t, intermediate + i].

Shapes: gate_up is ``[num_tokens, 2 · intermediate]``, gates first; out ``[num_tokens,
intermediate]``. A program takes WIDTH elements of one row. The activation is rounded to the
tensors' type before it is multiplied, as `kernels.reference` does.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.checks import require

WIDTH = 1024
NUM_WARPS = 4


@triton.jit
def _silu(gate):
    return gate * tl.sigmoid(gate)


@triton.jit
def _gelu_tanh(gate):
    # (1 + tanh(z)) / 2 is sigmoid(2 · z); 1.5957691216 is 2 · √(2/π).
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@triton.jit
def gated_kernel(gate_up, out, INTERMEDIATE: tl.constexpr, GELU: tl.constexpr, WIDTH: tl.constexpr):
    """One part of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < INTERMEDIATE
    gate = tl.load(gate_up + row * 2 * INTERMEDIATE + at, inside).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * INTERMEDIATE + at, inside).to(tl.float32)
    active = _gelu_tanh(gate) if GELU else _silu(gate)
    product = active.to(out.dtype.element_ty).to(tl.float32) * up
    tl.store(out + row * INTERMEDIATE + at, product.to(out.dtype.element_ty), inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`kernels.reference.silu_mul`.

    Raises:
        ValueError: gate_up is not contiguous, or its rows have no halves.
    """
    return _launch(gate_up, gelu=False)


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`kernels.reference.gelu_tanh_mul`.

    Raises:
        ValueError: gate_up is not contiguous, or its rows have no halves.
    """
    return _launch(gate_up, gelu=True)


def _launch(gate_up: torch.Tensor, gelu: bool) -> torch.Tensor:
    num_tokens, width = gate_up.shape
    if width % 2:
        raise ValueError(f"gate_up has rows of {width}; gates and ups must be as many")
    require("gate_up", gate_up, gate_up, (num_tokens, width))
    intermediate = width // 2
    out = torch.empty(num_tokens, intermediate, dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens:
        gated_kernel[(num_tokens, triton.cdiv(intermediate, WIDTH))](
            gate_up,
            out,
            INTERMEDIATE=intermediate,
            GELU=gelu,
            WIDTH=WIDTH,
            num_warps=NUM_WARPS,
        )
    return out
