"""`kernels.reference.paged_attention` for float32 on a CPU.

Decode rows read the paged cache in place: each key and value comes from memory once, for all query
heads that share it, and the next block of the table is on its way while this one is worked on. A
prefill chunk gathers its context once per layer and goes through torch's fused attention.
"""

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone reads)

from kernels.batch import Scoring, StepTensors
from kernels.elementwise_cpu import exp
from kernels.jit import inner, jit, prefetch
from kernels.reference import gather_context

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_LINE = 16  # float32 in a cache line


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: StepTensors,
    scoring: Scoring,
) -> torch.Tensor:
    """`kernels.reference.paged_attention`."""
    batch, scale = step.batch, scoring.scale
    out = torch.empty_like(query)
    if batch.num_decodes:
        _attend_decodes(
            query.numpy(),
            keys.numpy(),
            values.numpy(),
            batch.row_tables.numpy(),
            batch.seq_lens.numpy()[: batch.num_decodes],
            np.float32(scale),
            out.numpy(),
        )
    for (row, start, end, length), mask in zip(batch.chunks, batch.chunk_masks, strict=True):
        table = batch.row_tables[row]
        attended = F.scaled_dot_product_attention(
            query[start:end].transpose(0, 1)[None],
            gather_context(keys, table, length)[None],
            gather_context(values, table, length)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=True,
        )
        out[start:end] = attended[0].transpose(0, 1)
    return out.view(out.shape[0], -1)


@jit(parallel=True)
def _attend_decodes(
    query: Floats,
    keys: Floats,
    values: Floats,
    tables: Ints,
    lengths: Ints,
    scale: np.float32,
    out: Floats,
) -> None:
    """One token per row. A work item is a row and a KV head with its group of query heads."""
    num_kv_heads, block_size = keys.shape[1], keys.shape[2]
    group = query.shape[1] // num_kv_heads
    for item in numba.prange(lengths.shape[0] * num_kv_heads):
        row, head = item // num_kv_heads, item % num_kv_heads
        length, table = lengths[row], tables[row]
        num_blocks = (length + block_size - 1) // block_size
        queries = query[row, head * group : (head + 1) * group]
        mixed = out[row, head * group : (head + 1) * group]
        weights = np.empty((group, length), np.float32)
        for index in range(num_blocks):
            start = index * block_size
            # After the last block of keys comes the first of values.
            last = index + 1 == num_blocks
            ahead = values[table[0], head] if last else keys[table[index + 1], head]
            here = weights[:, start : min(start + block_size, length)]
            _score_block(queries, keys[table[index], head], here, ahead)
        _softmax(weights, scale)
        mixed[:] = np.float32(0)
        for index in range(num_blocks):
            start = index * block_size
            ahead = values[table[min(index + 1, num_blocks - 1)], head]
            here = weights[:, start : min(start + block_size, length)]
            _mix_block(here, values[table[index], head], mixed, ahead)


@inner()
def _score_block(queries: Floats, keys: Floats, scores: Floats, ahead: Floats) -> None:
    """scores[g, t] = queries[g] · keys[t], four tokens at a time."""
    group, head_dim = queries.shape
    num_tokens = scores.shape[1]
    whole = num_tokens - num_tokens % 4
    for t in range(0, whole, 4):
        for i in range(t * head_dim, (t + 4) * head_dim, _LINE):
            prefetch(ahead, i)
        for g in range(group):
            a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for i in range(head_dim):
                q = queries[g, i]
                a += q * keys[t, i]
                b += q * keys[t + 1, i]
                c += q * keys[t + 2, i]
                d += q * keys[t + 3, i]
            scores[g, t], scores[g, t + 1] = a, b
            scores[g, t + 2], scores[g, t + 3] = c, d
    for t in range(whole, num_tokens):
        for g in range(group):
            a = np.float32(0)
            for i in range(head_dim):
                a += queries[g, i] * keys[t, i]
            scores[g, t] = a


@inner()
def _softmax(weights: Floats, scale: np.float32) -> None:
    for g in range(weights.shape[0]):
        highest = weights[g, 0]
        for t in range(weights.shape[1]):
            highest = max(highest, weights[g, t])
        total = np.float32(0)
        for t in range(weights.shape[1]):
            weight = exp((weights[g, t] - highest) * scale)
            weights[g, t] = weight
            total += weight
        for t in range(weights.shape[1]):
            weights[g, t] /= total


@inner()
def _mix_block(weights: Floats, values: Floats, mixed: Floats, ahead: Floats) -> None:
    """mixed[g] += Σ weights[g, t] · values[t], eight tokens at a time."""
    group, head_dim = mixed.shape
    num_tokens = weights.shape[1]
    whole = num_tokens - num_tokens % 8
    for t in range(0, whole, 8):
        for i in range(t * head_dim, (t + 8) * head_dim, _LINE):
            prefetch(ahead, i)
        for g in range(group):
            a, b, c, d = weights[g, t], weights[g, t + 1], weights[g, t + 2], weights[g, t + 3]
            e, f, h, k = weights[g, t + 4], weights[g, t + 5], weights[g, t + 6], weights[g, t + 7]
            for i in range(head_dim):
                mixed[g, i] += (
                    (a * values[t, i] + b * values[t + 1, i])
                    + (c * values[t + 2, i] + d * values[t + 3, i])
                    + (e * values[t + 4, i] + f * values[t + 5, i])
                    + (h * values[t + 6, i] + k * values[t + 7, i])
                )
    for t in range(whole, num_tokens):
        for g in range(group):
            a = weights[g, t]
            for i in range(head_dim):
                mixed[g, i] += a * values[t, i]
