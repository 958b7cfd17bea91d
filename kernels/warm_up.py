"""Compiles every CPU kernel before the first request: one thread's version and several threads'."""

import torch

from kernels.batch import AttentionBatch, HeadNorms, RopeTable, Scoring, StepTensors
from kernels.ops import Ops

_BLOCK_SIZE, _HEAD_DIM, _NUM_HEADS, _NUM_KV_HEADS = 4, 4, 4, 2
# Few rows, and more than any kernel's threshold for several threads.
_ROW_COUNTS = (1, 64)


def warm_up(ops: Ops, device: torch.device, dtype: torch.dtype) -> None:
    """Runs each op on toy tensors, where `kernels.ops.compiles_ahead`."""
    for num_rows in _ROW_COUNTS:
        _run_all(ops, num_rows, device, dtype)


def _run_all(ops: Ops, num_rows: int, device: torch.device, dtype: torch.dtype) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    batch = AttentionBatch(
        token_ids=torch.zeros(num_rows, dtype=torch.int64, device=device),
        positions=torch.zeros(num_rows, dtype=torch.int64, device=device),
        cu_seqlens=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
        seq_lens=torch.ones(num_rows, dtype=torch.int32, device=device),
        block_table=torch.zeros((num_rows, 1), dtype=torch.int32, device=device),
        num_decodes=num_rows,
        sample_index=torch.zeros(1, dtype=torch.int64, device=device),
    )
    rope = RopeTable.build(torch.ones(_HEAD_DIM // 2, device=device), max_position=1)
    step = StepTensors(batch, _BLOCK_SIZE, rope)
    hidden, weight = zeros(num_rows, _HEAD_DIM), zeros(_HEAD_DIM)
    cache = (1, _NUM_KV_HEADS, _BLOCK_SIZE, _HEAD_DIM)
    keys, values = zeros(*cache), zeros(*cache)
    qkv = zeros(num_rows, (_NUM_HEADS + 2 * _NUM_KV_HEADS) * _HEAD_DIM)
    ops.add_rms_norm(ops.rms_norm(hidden, weight, 1.0), hidden, weight, 1.0)
    norms = HeadNorms(zeros(_HEAD_DIM), zeros(_HEAD_DIM), eps=1.0)
    query = ops.rope_and_store(qkv, step, keys, values, norms)
    ops.paged_attention(query, keys, values, step, Scoring(scale=1.0))
    for activation in (ops.silu_mul, ops.gelu_tanh_mul):
        activation(zeros(num_rows, 2 * _HEAD_DIM))
