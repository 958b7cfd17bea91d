"""The elementwise ops of `kernels.reference` for float32 on a CPU: one pass over memory each.

A kernel that sees many rows exists twice, for one thread and for several: below a few dozen rows
one thread is done before a second has woken. Inner loops index views with the bare loop variable:
an index that might be negative, `half + i` say, keeps numba from making vectors of them.
"""

import math

import numba
import numpy as np
import numpy.typing as npt
import torch

from kernels.batch import HeadNorms, StepTensors
from kernels.jit import inner, jit

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_PARALLEL_ROWS = 48

_LOG2_E, _LN_2 = np.float32(1 / math.log(2)), np.float32(math.log(2))
# e^x stays a normal number; what lies beyond is as good as 0 or infinite to every caller.
_EXP_LOWEST, _EXP_HIGHEST = np.float32(-87.0), np.float32(88.0)
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
# 1/k!: the Taylor series of e^r for |r| <= ln(2) / 2, to the last bits of a float32.
_C2, _C3, _C4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_C5, _C6, _C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)
# gelu's polynomial, twice: g / 2 · (1 + tanh(p)) = g / (1 + e^(-2p)).
_GELU_1, _GELU_3 = (np.float32(2 * math.sqrt(2 / math.pi) * c) for c in (1.0, 0.044715))


@inner()
def exp(x: np.float32) -> np.float32:
    """e^x as 2^n · e^r: no call and no branch, so that loops around it become vectors."""
    x = min(max(x, _EXP_LOWEST), _EXP_HIGHEST)
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN_2
    series = _ONE + r * (_ONE + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(series * power)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`kernels.reference.rms_norm`."""
    out = torch.empty_like(x)
    _norm(x.numpy(), weight.numpy(), np.float32(eps), out.numpy())
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """`kernels.reference.add_rms_norm`."""
    out = torch.empty_like(x)
    kernel = _add_norm_parallel if _several_threads_pay(x) else _add_norm
    kernel(x.numpy(), residual.numpy(), weight.numpy(), np.float32(eps), out.numpy())
    return out


def rope_and_store(
    qkv: torch.Tensor,
    step: StepTensors,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """`kernels.reference.rope_and_store`."""
    _, num_kv_heads, _, head_dim = keys.shape
    num_tokens, width = qkv.shape
    if norms is not None:
        _norm_heads(qkv.view(num_tokens, -1, head_dim), num_kv_heads, norms)
    query = qkv.new_empty(num_tokens, width // head_dim - 2 * num_kv_heads, head_dim)
    kernel = _rope_store_parallel if _several_threads_pay(qkv) else _rope_store
    kernel(
        qkv.numpy(),
        step.cos.numpy(),
        step.sin.numpy(),
        step.kv_index.numpy(),
        keys.numpy(),
        values.numpy(),
        query.numpy(),
    )
    return query


def _norm_heads(heads: torch.Tensor, num_kv_heads: int, norms: HeadNorms) -> None:
    """Norms query and key heads, in place.

    Args:
        heads: [num_tokens, num_heads + 2 · num_kv_heads, head_dim].
        num_kv_heads: of the keys, and of the values after them.
        norms: their weights.
    """
    num_heads = heads.shape[1] - 2 * num_kv_heads
    kernel = _norm_heads_parallel if _several_threads_pay(heads) else _norm_heads_serial
    kernel(
        heads.numpy(),
        num_heads,
        num_kv_heads,
        norms.query.numpy(),
        norms.key.numpy(),
        np.float32(norms.eps),
    )


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`kernels.reference.silu_mul`."""
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    kernel = _silu_mul_parallel if _several_threads_pay(gate_up) else _silu_mul
    kernel(gate_up.numpy(), out.numpy())
    return out


def gelu_tanh_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`kernels.reference.gelu_tanh_mul`."""
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    kernel = _gelu_tanh_mul_parallel if _several_threads_pay(gate_up) else _gelu_tanh_mul
    kernel(gate_up.numpy(), out.numpy())
    return out


def _several_threads_pay(x: torch.Tensor) -> bool:
    return x.shape[0] >= _PARALLEL_ROWS


@inner()
def _norm_row(x: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    scale = _ONE / np.sqrt(total / np.float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        out[i] = x[i] * scale * weight[i]


@jit()
def _norm(x: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    for row in range(x.shape[0]):
        _norm_row(x[row], weight, eps, out[row])


@inner()
def _add_row(x: Floats, residual: Floats) -> None:
    for i in range(x.shape[0]):
        residual[i] += x[i]


@jit()
def _add_norm(x: Floats, residual: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    for row in range(x.shape[0]):
        _add_row(x[row], residual[row])
        _norm_row(residual[row], weight, eps, out[row])


@jit(parallel=True)
def _add_norm_parallel(
    x: Floats, residual: Floats, weight: Floats, eps: np.float32, out: Floats
) -> None:
    for row in numba.prange(x.shape[0]):
        _add_row(x[row], residual[row])
        _norm_row(residual[row], weight, eps, out[row])


@inner()
def _norm_heads_row(
    heads: Floats, num_heads: int, num_kv_heads: int, query: Floats, key: Floats, eps: np.float32
) -> None:
    for head in range(num_heads):
        _norm_row(heads[head], query, eps, heads[head])
    for head in range(num_heads, num_heads + num_kv_heads):
        _norm_row(heads[head], key, eps, heads[head])


@jit()
def _norm_heads_serial(
    heads: Floats, num_heads: int, num_kv_heads: int, query: Floats, key: Floats, eps: np.float32
) -> None:
    for row in range(heads.shape[0]):
        _norm_heads_row(heads[row], num_heads, num_kv_heads, query, key, eps)


@jit(parallel=True)
def _norm_heads_parallel(
    heads: Floats, num_heads: int, num_kv_heads: int, query: Floats, key: Floats, eps: np.float32
) -> None:
    for row in numba.prange(heads.shape[0]):
        _norm_heads_row(heads[row], num_heads, num_kv_heads, query, key, eps)


@inner()
def _rotate(head: Floats, cos: Floats, sin: Floats, out: Floats) -> None:
    half = cos.shape[0]
    low, high, out_low, out_high = head[:half], head[half:], out[:half], out[half:]
    for i in range(half):
        out_low[i] = low[i] * cos[i] - high[i] * sin[i]
        out_high[i] = high[i] * cos[i] + low[i] * sin[i]


@inner()
def _copy(source: Floats, out: Floats) -> None:
    for i in range(out.shape[0]):
        out[i] = source[i]


@inner()
def _rope_store_row(
    qkv: Floats, cos: Floats, sin: Floats, index: int, keys: Floats, values: Floats, query: Floats
) -> None:
    num_heads, head_dim = query.shape
    num_kv_heads, block_size = keys.shape[1], keys.shape[2]
    block, offset = index // block_size, index % block_size
    for head in range(num_heads):
        _rotate(qkv[head * head_dim :], cos, sin, query[head])
    for head in range(num_kv_heads):
        key = (num_heads + head) * head_dim
        value = key + num_kv_heads * head_dim
        _rotate(qkv[key:], cos, sin, keys[block, head, offset])
        _copy(qkv[value:], values[block, head, offset])


@jit()
def _rope_store(
    qkv: Floats,
    cos: Floats,
    sin: Floats,
    kv_index: Indices,
    keys: Floats,
    values: Floats,
    query: Floats,
) -> None:
    for row in range(qkv.shape[0]):
        _rope_store_row(qkv[row], cos[row], sin[row], kv_index[row], keys, values, query[row])


@jit(parallel=True)
def _rope_store_parallel(
    qkv: Floats,
    cos: Floats,
    sin: Floats,
    kv_index: Indices,
    keys: Floats,
    values: Floats,
    query: Floats,
) -> None:
    for row in numba.prange(qkv.shape[0]):
        _rope_store_row(qkv[row], cos[row], sin[row], kv_index[row], keys, values, query[row])


@inner()
def _silu_mul_row(gate_up: Floats, out: Floats) -> None:
    gate, up = gate_up[: out.shape[0]], gate_up[out.shape[0] :]
    for i in range(out.shape[0]):
        out[i] = gate[i] / (_ONE + exp(-gate[i])) * up[i]


@jit()
def _silu_mul(gate_up: Floats, out: Floats) -> None:
    for row in range(out.shape[0]):
        _silu_mul_row(gate_up[row], out[row])


@jit(parallel=True)
def _silu_mul_parallel(gate_up: Floats, out: Floats) -> None:
    for row in numba.prange(out.shape[0]):
        _silu_mul_row(gate_up[row], out[row])


@inner()
def _gelu_tanh_mul_row(gate_up: Floats, out: Floats) -> None:
    gate, up = gate_up[: out.shape[0]], gate_up[out.shape[0] :]
    for i in range(out.shape[0]):
        g = gate[i]
        out[i] = g / (_ONE + exp(-g * (_GELU_1 + _GELU_3 * g * g))) * up[i]


@jit()
def _gelu_tanh_mul(gate_up: Floats, out: Floats) -> None:
    for row in range(out.shape[0]):
        _gelu_tanh_mul_row(gate_up[row], out[row])


@jit(parallel=True)
def _gelu_tanh_mul_parallel(gate_up: Floats, out: Floats) -> None:
    for row in numba.prange(out.shape[0]):
        _gelu_tanh_mul_row(gate_up[row], out[row])
