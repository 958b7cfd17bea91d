"""`kernels.reference.paged_attention` for float32 on a CPU.

Decode rows read the paged cache in place: each key and value comes from memory once, for all query
heads that share it, and the next block of the table is on its way while this one is worked on. A
prefill chunk gathers its context once per layer and goes through torch's fused attention. With a
sliding window either begins at the first block that is seen.
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone reads)

from kernels.batch import Scoring, StepTensors
from kernels.elementwise_cpu import exp
from kernels.jit import inner, jit, prefetch
from kernels.reference import gather_context, visible

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_LINE = 16  # float32 in a cache line
# A window that no context outgrows, and the cap that bounds nothing.
_ALL_POSITIONS, _NO_CAP = 1 << 40, np.float32(np.inf)


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: StepTensors,
    scoring: Scoring,
) -> torch.Tensor:
    """`kernels.reference.paged_attention`."""
    batch, window, softcap = step.batch, scoring.window, scoring.softcap
    out = torch.empty_like(query)
    if batch.num_decodes:
        _attend_decodes(
            query.numpy(),
            keys.numpy(),
            values.numpy(),
            batch.row_tables.numpy(),
            batch.seq_lens.numpy()[: batch.num_decodes],
            np.float32(scoring.scale),
            _ALL_POSITIONS if window is None else window,
            _NO_CAP if softcap is None else np.float32(softcap),
            out.numpy(),
        )
    attend = _attend_chunk if softcap is None else _attend_capped_chunk
    for chunk in _chunks(step, scoring):
        rows = slice(chunk.start, chunk.end)
        key = gather_context(keys, chunk.blocks, chunk.length)
        value = gather_context(values, chunk.blocks, chunk.length)
        attended = attend(query[rows].transpose(0, 1), key, value, chunk.mask, scoring)
        out[rows] = attended.transpose(0, 1)
    return out.view(out.shape[0], -1)


class _Chunk(NamedTuple):
    """What all layers that score alike need of one prefill row.

    Attributes:
        start: its first token.
        end: behind its last.
        blocks: its block table, from the first block that any of its tokens sees.
        length: tokens from that block's first on.
        mask: what its tokens see of them, [chunk, length] bool; None for plainly causal.
    """

    start: int
    end: int
    blocks: torch.Tensor
    length: int
    mask: torch.Tensor | None


def _chunks(step: StepTensors, scoring: Scoring) -> list[_Chunk]:
    found: list[_Chunk] | None = step.memo.get(scoring)
    if found is not None:
        return found
    chunks, window = [], scoring.window
    for row, start, end, length in step.batch.chunks:
        new = end - start
        skipped = 0 if window is None else max(0, length - new - window + 1) // step.block_size
        left = length - skipped * step.block_size
        causal = new == left and (window is None or window >= left) and scoring.softcap is None
        mask = None if causal else visible(new, left, window, step.batch.token_ids.device)
        chunks.append(_Chunk(start, end, step.batch.row_tables[row, skipped:], left, mask))
    step.memo[scoring] = chunks
    return chunks


def _attend_chunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """One chunk's heads: [heads, chunk, head_dim] against [kv_heads, length, head_dim]."""
    attended = F.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scoring.scale,
        enable_gqa=True,
    )
    return attended[0]


def _attend_capped_chunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """`_attend_chunk` with the cap, which torch's fused attention lacks: a KV head at a time."""
    assert mask is not None
    assert scoring.softcap is not None
    mixed = []
    for group, k, v in zip(query.chunk(len(key)), key, value, strict=True):
        scores = (group @ k.T).mul_(scoring.scale / scoring.softcap).tanh_().mul_(scoring.softcap)
        mixed.append(scores.masked_fill_(~mask, float("-inf")).softmax(-1) @ v)
    return torch.cat(mixed)


@jit(parallel=True)
def _attend_decodes(
    query: Floats,
    keys: Floats,
    values: Floats,
    tables: Ints,
    lengths: Ints,
    scale: np.float32,
    window: int,
    softcap: np.float32,
    out: Floats,
) -> None:
    """One token per row. A work item is a row and a KV head with its group of query heads."""
    num_kv_heads, block_size = keys.shape[1], keys.shape[2]
    group = query.shape[1] // num_kv_heads
    for item in numba.prange(lengths.shape[0] * num_kv_heads):
        row, head = item // num_kv_heads, item % num_kv_heads
        length, table = lengths[row], tables[row]
        oldest = max(0, length - window)
        first, behind = oldest // block_size, (length + block_size - 1) // block_size
        queries = query[row, head * group : (head + 1) * group]
        mixed = out[row, head * group : (head + 1) * group]
        weights = np.empty((group, length - oldest), np.float32)
        for index in range(first, behind):
            start = max(index * block_size, oldest)
            # After the last block of keys comes the first of values.
            last = index + 1 == behind
            ahead = values[table[first], head] if last else keys[table[index + 1], head]
            here = weights[:, start - oldest : min((index + 1) * block_size, length) - oldest]
            _score_block(queries, keys[table[index], head][start % block_size :], here, ahead)
        if softcap < _NO_CAP:
            _cap(weights, scale, softcap)
            _softmax(weights, np.float32(1))
        else:
            _softmax(weights, scale)
        mixed[:] = np.float32(0)
        for index in range(first, behind):
            start = max(index * block_size, oldest)
            ahead = values[table[min(index + 1, behind - 1)], head]
            here = weights[:, start - oldest : min((index + 1) * block_size, length) - oldest]
            _mix_block(here, values[table[index], head][start % block_size :], mixed, ahead)


@inner()
def _cap(scores: Floats, scale: np.float32, softcap: np.float32) -> None:
    """softcap · tanh(scale · score / softcap), by tanh(x) = 1 - 2 / (e^2x + 1)."""
    twice = np.float32(2) * scale / softcap
    for g in range(scores.shape[0]):
        for t in range(scores.shape[1]):
            above = np.float32(2) / (exp(scores[g, t] * twice) + np.float32(1))
            scores[g, t] = softcap * (np.float32(1) - above)


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
