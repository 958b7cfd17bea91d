"""Paged attention in Triton: `kernels.reference.paged_attention` for GPUs.

`kernels.gpu.attention_kernels` says how it is computed, `kernels.gpu.tiling` in which sizes. Here
arguments are checked and the rows of a step go two ways: decodes, one token each, and chunks.
"""

from typing import Any

import torch
import triton

from kernels.batch import Scoring, StepTensors
from kernels.gpu import tiling
from kernels.gpu.attention_kernels import (
    attend_chunks_kernel,
    attend_decodes_kernel,
    join_splits_kernel,
)
from kernels.gpu.checks import require, require_dtype
from kernels.gpu.tiling import Gpu, Tiling

FLOAT8 = torch.float8_e4m3fn
MAX_HEAD_DIM = 256
JOIN_WARPS = 4
_LOG2_E = 1.4426950408889634


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: StepTensors,
    scoring: Scoring,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """`kernels.reference.paged_attention`; the cache may also be float8 (e4m3).

    Tokens that no row owns are passed over: what comes out for them is undefined.

    Args:
        query: [num_tokens, num_heads, head_dim], rotated.
        keys: [num_blocks, num_kv_heads, block_size, head_dim], this step's tokens included.
        values: likewise.
        step: rows, lengths and block tables.
        scoring: scale, window, soft cap.
        key_scale: what the keys of the cache are multiples of.
        value_scale: what its values are multiples of.

    Returns:
        [num_tokens, num_heads · head_dim], in the query's type.

    Raises:
        ValueError: a shape, type, device or number is not what it must be.
    """
    batch, gpu = step.batch, tiling.gpu_of(query.device)
    _check(query, keys, values, step, scoring, gpu)
    out = torch.empty_like(query)
    shared = _shared_arguments(query, keys, values, step, scoring, key_scale, value_scale)
    if batch.num_decodes:
        _attend_decodes(query, out, batch.num_decodes, gpu, shared)
    if batch.num_rows > batch.num_decodes and batch.num_tokens > batch.num_decodes:
        _attend_chunks(query, out, step, gpu, shared)
    return out.view(out.shape[0], -1)


def _shared_arguments(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: StepTensors,
    scoring: Scoring,
    key_scale: float,
    value_scale: float,
) -> dict[str, Any]:
    """What both kernels are given."""
    batch, scale, softcap = step.batch, scoring.scale * key_scale, scoring.softcap
    _, num_kv_heads, block_size, head_dim = keys.shape
    return {
        "query": query,
        "keys": keys,
        "values": values,
        "tables": batch.block_table,
        "row_slot": batch.row_slot,
        "seq_lens": batch.seq_lens,
        "stride_block": keys.stride(0),
        "stride_table": batch.block_table.stride(0),
        "squash": None if softcap is None else scale / softcap,
        "factor": (scale if softcap is None else softcap) * _LOG2_E,
        "value_scale": value_scale,
        "GROUP": query.shape[1] // num_kv_heads,
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "WINDOW": scoring.window,
        "WIDTH": triton.next_power_of_2(head_dim),
    }


def _attend_decodes(
    query: torch.Tensor, out: torch.Tensor, num_rows: int, gpu: Gpu, shared: dict[str, Any]
) -> None:
    """The rows of one token each."""
    _, num_heads, head_dim = query.shape
    group = shared["GROUP"]
    num_kv_heads = num_heads // group
    splits = tiling.num_splits(gpu, num_rows, num_kv_heads)
    parts, logsums = out, None
    if splits > 1:
        shape = (num_rows, num_heads, splits)
        parts = torch.empty(*shape, head_dim, dtype=torch.float32, device=query.device)
        logsums = torch.empty(shape, dtype=torch.float32, device=query.device)
    chosen = tiling.decode_tiling(gpu, group, head_dim, query.dtype)
    attend_decodes_kernel[num_rows, num_kv_heads, splits](
        **shared, out=parts, logsums=logsums, **_tiled(chosen)
    )
    if splits > 1:
        join_splits_kernel[num_rows * num_heads,](
            parts,
            logsums,
            out,
            splits,
            HEAD_DIM=head_dim,
            MAX_SPLITS=tiling.MAX_SPLITS,
            WIDTH=shared["WIDTH"],
            num_warps=JOIN_WARPS,
        )


def _attend_chunks(
    query: torch.Tensor, out: torch.Tensor, step: StepTensors, gpu: Gpu, shared: dict[str, Any]
) -> None:
    """The rows after the decodes, of any number of tokens."""
    batch = step.batch
    _, num_heads, head_dim = query.shape
    group = shared["GROUP"]
    num_tokens, num_rows = batch.num_tokens - batch.num_decodes, batch.num_rows - batch.num_decodes
    chosen = tiling.chunk_tiling(gpu, num_tokens, num_rows, num_heads, group, head_dim, query.dtype)
    block_q = chosen.block_m // group
    first_block = batch.num_decodes // block_q + batch.num_decodes
    num_blocks = batch.num_tokens // block_q + batch.num_rows - first_block
    attend_chunks_kernel[num_blocks, num_heads // group](
        **shared,
        cu_seqlens=batch.cu_seqlens,
        out=out,
        first_row=batch.num_decodes,
        num_rows=batch.num_rows,
        **_tiled(chosen),
    )


def _tiled(chosen: Tiling) -> dict[str, int]:
    """A tiling as arguments of a launch."""
    return {
        "BLOCK_M": chosen.block_m,
        "TILE": chosen.tile,
        "num_warps": chosen.num_warps,
        "num_stages": chosen.num_stages,
    }


def check_head_dim(head_dim: int) -> None:
    """Raises ValueError unless heads of this size can be attended."""
    if head_dim > MAX_HEAD_DIM or head_dim % 16:
        raise ValueError(
            f"head_dim is {head_dim}; it must be a multiple of 16, at most {MAX_HEAD_DIM}"
        )


def _check(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: StepTensors,
    scoring: Scoring,
    gpu: Gpu,
) -> None:
    batch = step.batch
    _, num_heads, head_dim = query.shape
    num_blocks, num_kv_heads, block_size, _ = keys.shape
    if num_heads % num_kv_heads:
        raise ValueError(f"query has {num_heads} heads; keys have {num_kv_heads}, no divisor of it")
    check_head_dim(head_dim)
    if block_size != step.block_size:
        raise ValueError(
            f"keys have blocks of {block_size} tokens; the step's have {step.block_size}"
        )
    if scoring.window is not None and scoring.window < 1:
        raise ValueError(f"window is {scoring.window}; a token sees at least itself")
    if scoring.scale <= 0:
        raise ValueError(f"scale is {scoring.scale}; it must be above 0")
    require("query", query, query, query.shape)
    require("keys", keys, query, (num_blocks, num_kv_heads, block_size, head_dim))
    require("values", values, query, keys.shape)
    require_dtype("query", query, torch.bfloat16, torch.float16, torch.float32)
    require_dtype("keys", keys, query.dtype, *((FLOAT8,) if gpu.has_float8 else ()))
    require_dtype("values", values, keys.dtype)
    require("cu_seqlens", batch.cu_seqlens, query, (batch.num_rows + 1,))
    require("seq_lens", batch.seq_lens, query, (batch.num_rows,))
    require("block_table", batch.block_table, query, batch.block_table.shape)
    if batch.row_slot is not None:
        require("row_slot", batch.row_slot, query, (batch.num_rows,))
