"""What every op means, in plain torch: the specification that other versions are tested against.

Shapes: tokens of all rows are flattened, ``[num_tokens, ...]``. Heads are grouped (GQA): query head
h reads key/value head ``h // (num_heads // num_kv_heads)``. A layer's paged cache is two tensors
``[num_blocks, num_kv_heads, block_size, head_dim]``; a token's *KV index* there is
``block * block_size + offset``.

Reductions and rotations are computed in float32 whatever the type of the tensors.
"""

import torch

from kernels.batch import HeadNorms, Scoring, StepTensors


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x²) + eps) · weight, over the last axis (arXiv 1910.07467).

    Args:
        x: [num_tokens, hidden].
        weight: [hidden], of x's type or in float32; the product is taken in the weight's type.
        eps: added to the mean square.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight * (wide * scale).to(weight.dtype)).to(x.dtype)


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
    qkv: torch.Tensor,
    step: StepTensors,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """Rotates queries and keys, normed first if asked; writes keys and values into the paged cache.

    Args:
        qkv: [num_tokens, (num_heads + 2 · num_kv_heads) · head_dim], queries first.
        step: the tokens' rotary angles and KV indices.
        keys: [num_blocks, num_kv_heads, block_size, head_dim]; written in place.
        values: likewise.
        norms: of query and key heads, before the rotation; None for none.

    Returns:
        The rotated queries, [num_tokens, num_heads, head_dim].
    """
    _, num_kv_heads, block_size, head_dim = keys.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if norms is not None:
        query, key = (
            rms_norm(query, norms.query, norms.eps),
            rms_norm(key, norms.key, norms.eps),
        )
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


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gelu(gate) · up, where gelu(g) = g / 2 · (1 + tanh(√(2/π) · (g + 0.044715 · g³))).

    Args:
        gate_up: [num_tokens, 2 · intermediate], gates first.

    Returns:
        [num_tokens, intermediate].
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


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


def visible(num_new: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """What the last tokens of a context see of it.

    Args:
        num_new: tokens that look.
        length: tokens of the context, the new ones included.
        window: positions that a token sees, its own included; None: all up to its own.

    Returns:
        [num_new, length] bool.
    """
    seen = torch.ones(num_new, length, dtype=torch.bool, device=device).tril(length - num_new)
    return seen if window is None else seen.triu(length - num_new - window + 1)


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: StepTensors,
    scoring: Scoring,
) -> torch.Tensor:
    """softmax(q · Kᵀ · scale) · V for each row over its own context, causal.

    A row's token i of n stands at position ``seq_len - n + i`` and sees everything up to itself, or
    the last `window` positions of that. Decode rows are the case n = 1.

    Args:
        query: [num_tokens, num_heads, head_dim], rotated.
        keys: [num_blocks, num_kv_heads, block_size, head_dim], this step's tokens included.
        values: likewise.
        step: rows, lengths and block tables.
        scoring: scale, window, soft cap.

    Returns:
        [num_tokens, num_heads · head_dim].
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    grouping = (num_kv_heads, num_heads // num_kv_heads, -1, head_dim)
    batch, out = step.batch, torch.empty_like(query)
    starts, lengths = batch.cu_seqlens.tolist(), batch.seq_lens.tolist()
    for row, length in enumerate(lengths):
        start, end = starts[row], starts[row + 1]
        key = gather_context(keys, batch.row_tables[row], length).float()
        value = gather_context(values, batch.row_tables[row], length).float()
        grouped = query[start:end].float().transpose(0, 1).reshape(grouping)
        scores = grouped @ key[:, None].transpose(-1, -2) * scoring.scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        seen = visible(end - start, length, scoring.window, query.device)
        scores.masked_fill_(~seen, float("-inf"))
        mixed = scores.softmax(-1) @ value[:, None]
        out[start:end] = mixed.flatten(0, 1).transpose(0, 1).to(query.dtype)
    return out.reshape(num_tokens, num_heads * head_dim)


def copy_blocks(storage: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """storage[:, destinations[i]] = storage[:, sources[i]], in place.

    Args:
        storage: [layers, num_blocks, ...]; a layer's keys and values count as two.
        sources: [num_pairs] integer.
        destinations: [num_pairs] integer, all different, none of them a source.
    """
    storage[:, destinations.long()] = storage[:, sources.long()]
