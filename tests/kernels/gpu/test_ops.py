"""Which version of an op a GPU gets."""

from pathlib import Path

import pytest
import torch

from kernels import ops
from kernels.gpu import activation, attention, norm, rope
from tests.worker.builders import write_tiny_llama
from worker.loader import LoadError, open_model


def test_a_gpu_gets_triton_s_ops_whatever_the_number_format() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        chosen = ops.select(torch.device("cuda", 0), dtype)
        assert chosen.rms_norm is norm.rms_norm
        assert chosen.add_rms_norm is norm.add_rms_norm
        assert chosen.rope_and_store is rope.rope_and_store
        assert chosen.paged_attention is attention.paged_attention
        assert chosen.silu_mul is activation.silu_mul
        assert chosen.gelu_tanh_mul is activation.gelu_tanh_mul


def test_a_model_whose_heads_a_gpu_cannot_take_is_refused_before_it_is_loaded(
    tmp_path: Path,
) -> None:
    write_tiny_llama(tmp_path, head_dim=100)
    open_model(tmp_path, dtype="auto", device=torch.device("cpu"))
    with pytest.raises(LoadError, match="on cuda, head_dim is 100; it must be a multiple of 16"):
        open_model(tmp_path, dtype="auto", device=torch.device("cuda"))


def test_nothing_is_compiled_for_sizes_that_no_model_has() -> None:
    assert not ops.compiles_ahead(torch.device("cuda"))
    assert ops.compiles_ahead(torch.device("cpu"))
