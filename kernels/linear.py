"""y = x · Wᵀ + b with W stored the way the device multiplies fastest.

On an x86 CPU, float32 weights are reordered once into oneDNN's blocked layout, which replaces the
plain matrix (same bytes) and serves every number of rows. Everywhere else W stays as it is.
"""

import platform
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone reads)

from kernels.quantized import Matrix, dense, rows_joined

# The row count that the blocked layout is chosen for; measured as good for 1 row as for 256.
_PACKED_FOR_ROWS = 32


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this machine has a blocked layout for such a matrix."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and platform.machine() in ("x86_64", "AMD64")
        and torch._C._has_mkldnn
    )


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Reorders a matrix for `linear`; the result is opaque to everything else.

    Args:
        weight: [out_features, in_features].
    """
    if not can_pack(weight):
        return weight
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
    return packed


def pack_parts(parts: Sequence[Matrix]) -> torch.Tensor:
    """Matrices one above the other as `pack_weight` has them, in floats."""
    return pack_weight(dense(parts[0]) if len(parts) == 1 else rows_joined([*map(dense, parts)]))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x · Wᵀ + b.

    Args:
        x: [num_tokens, in_features].
        weight: from `pack_weight`.
        bias: [out_features] or None.

    Returns:
        [num_tokens, out_features].
    """
    if weight.is_mkldnn:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def linear_into(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x · Wᵀ, the same bits as of `linear`, written to `out` [num_tokens, out_features]."""
    if weight.is_mkldnn:
        return out.copy_(linear(x, weight))
    return torch.mm(x, weight.t(), out=out)
