"""Which version of an op a GPU gets."""

import torch

from kernels import ops
from kernels.gpu import activation, norm, rope


def test_a_gpu_gets_triton_s_ops_whatever_the_number_format() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        chosen = ops.select(torch.device("cuda", 0), dtype)
        assert chosen.rms_norm is norm.rms_norm
        assert chosen.add_rms_norm is norm.add_rms_norm
        assert chosen.rope_and_store is rope.rope_and_store
        assert chosen.silu_mul is activation.silu_mul
        assert chosen.gelu_tanh_mul is activation.gelu_tanh_mul
