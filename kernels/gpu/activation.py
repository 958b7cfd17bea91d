"""silu(gate) · up on a GPU: one pass over memory.

    out[t, i] = gate[t, i] / (1 + e^-gate[t, i]) · up[t, i]

Shapes: gate_up is ``[num_tokens, 2 · intermediate]``, gates first; out ``[num_tokens,
intermediate]``. Element i of a row is a lane of a block of lanes; programs are (row, block).
"""

import triton
import triton.language as tl

WIDTH = 1024


@triton.jit
def silu_mul_kernel(gate_up, out, intermediate, WIDTH: tl.constexpr):
    """One block of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < intermediate
    gate = tl.load(gate_up + row * 2 * intermediate + at, inside).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * intermediate + at, inside).to(tl.float32)
    product = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32) * up
    tl.store(out + row * intermediate + at, product.to(out.dtype.element_ty), inside)
