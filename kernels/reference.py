"""What every op means, in plain torch: the specification that other versions are tested against.

Shapes: tokens of all rows are flattened, ``[num_tokens, ...]``. Heads are grouped (GQA): query head
h reads key/value head ``h // (num_heads // num_kv_heads)``. A layer's paged cache is two tensors
``[num_blocks, num_kv_heads, block_size, head_dim]``; a token's *KV index* there is
``block * block_size + offset``.

Reductions and rotations are computed in float32 whatever the type of the tensors.
"""

import torch

from kernels.batch import AttentionBatch, StepTensors


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x²) + eps) · weight, over the last axis (arXiv 1910.07467).

    Args:
        x: [num_tokens, hidden].
        weight: [hidden].
        eps: added to the mean square.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """residual += x (in place), then the norm of the sum.

    Args:
        x: [num_tokens, hidden], what the sublayer produced.
        residual: [num_tokens, hidden], the stream; updated in place.
        weight: [hidden].
        eps: added to the mean square.
    """
    residual += x
    return rms_norm(residual, weight, eps)


def rope_angles(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position · frequency, each [num_tokens, head_dim / 2] float32.

    Args:
        positions: [num_tokens] integer.
        inverse_frequencies: [head_dim / 2] float32.
    """
    angles = positions.float()[:, None] * inverse_frequencies[None, :]
    return angles.cos(), angles.sin()


def kv_index(batch: AttentionBatch, block_size: int) -> torch.Tensor:
    """Where each token's KV goes, [num_tokens] int64: block · block_size + offset."""
    lengths = batch.cu_seqlens.diff()
    rows = torch.repeat_interleave(
        torch.arange(batch.num_rows, device=lengths.device), lengths, output_size=batch.num_tokens
    )
    blocks = batch.block_table[rows, batch.positions // block_size].long()
    return blocks * block_size + batch.positions % block_size


def step_tensors(
    batch: AttentionBatch, block_size: int, inverse_frequencies: torch.Tensor
) -> StepTensors:
    """What all layers share.

    Args:
        batch: the rows.
        block_size: tokens per block.
        inverse_frequencies: [head_dim / 2] float32.
    """
    cos, sin = rope_angles(batch.positions, inverse_frequencies)
    return StepTensors(batch, kv_index(batch, block_size), cos, sin)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, halves layout: pair (i, i + head_dim / 2) turns by angle i.

    The method is arXiv 2104.09864's.

    Args:
        heads: [num_tokens, num_heads, head_dim].
        cos: [num_tokens, head_dim / 2].
        sin: [num_tokens, head_dim / 2].
    """
    low, high = heads.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(heads.dtype)


def rope_and_store(
    qkv: torch.Tensor, step: StepTensors, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Rotates queries and keys; writes keys and values into the paged cache.

    Args:
        qkv: [num_tokens, (num_heads + 2 · num_kv_heads) · head_dim], queries first.
        step: the tokens' rotary angles and KV indices.
        keys: [num_blocks, num_kv_heads, block_size, head_dim]; written in place.
        values: likewise.

    Returns:
        The rotated queries, [num_tokens, num_heads, head_dim].
    """
    _, num_kv_heads, block_size, head_dim = keys.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    block, offset = step.kv_index // block_size, step.kv_index % block_size
    keys[block, :, offset] = rotate(key, step.cos, step.sin)
    values[block, :, offset] = value
    return rotate(query, step.cos, step.sin)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, where silu(g) = g / (1 + e^−g).

    Args:
        gate_up: [num_tokens, 2 · intermediate], gates first.

    Returns:
        [num_tokens, intermediate].
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def gather_context(cache: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` tokens of one sequence, read from the paged cache.

    Args:
        cache: [num_blocks, num_kv_heads, block_size, head_dim].
        blocks: [max_blocks] int32, the sequence's block table.
        length: tokens; what the cache holds beyond it is never read.

    Returns:
        [num_kv_heads, length, head_dim].
    """
    _, num_kv_heads, block_size, head_dim = cache.shape
    used = blocks[: -(-length // block_size)]
    paged = cache[used.long()].transpose(0, 1)
    return paged.reshape(num_kv_heads, -1, head_dim)[:, :length]


def paged_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: StepTensors, scale: float
) -> torch.Tensor:
    """softmax(q · Kᵀ · scale) · V for each row over its own context, causal.

    A row's token i of n stands at position ``seq_len - n + i`` and sees everything up to itself.
    Decode rows are the case n = 1.

    Args:
        query: [num_tokens, num_heads, head_dim], rotated.
        keys: [num_blocks, num_kv_heads, block_size, head_dim], this step's tokens included.
        values: likewise.
        step: rows, lengths and block tables.
        scale: usually 1 / sqrt(head_dim).

    Returns:
        [num_tokens, num_heads · head_dim].
    """
    num_tokens, num_heads, head_dim = query.shape
    group = num_heads // keys.shape[1]
    batch, out = step.batch, torch.empty_like(query)
    starts, lengths = batch.cu_seqlens.tolist(), batch.seq_lens.tolist()
    for row, length in enumerate(lengths):
        start, end = starts[row], starts[row + 1]
        key = gather_context(keys, batch.block_table[row], length).float()
        value = gather_context(values, batch.block_table[row], length).float()
        grouped = query[start:end].float().transpose(0, 1).reshape(-1, group, end - start, head_dim)
        scores = grouped @ key[:, None].transpose(-1, -2) * scale
        seen = torch.ones(end - start, length, dtype=torch.bool, device=query.device)
        scores.masked_fill_(~seen.tril(length - (end - start)), float("-inf"))
        mixed = scores.softmax(-1) @ value[:, None]
        out[start:end] = mixed.flatten(0, 1).transpose(0, 1).to(query.dtype)
    return out.reshape(num_tokens, num_heads * head_dim)
