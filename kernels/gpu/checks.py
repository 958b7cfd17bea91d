"""What host functions demand of their tensors, so that kernels may trust them.

A pointer says nothing of what lies behind it: a wrong stride or type would be read as garbage, and
a tensor elsewhere as an address that does not exist.
"""

from collections.abc import Sequence

import torch


def require(name: str, tensor: torch.Tensor, like: torch.Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless the tensor has this shape, is contiguous and lives with `like`."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {like.device}")


def require_dtype(name: str, tensor: torch.Tensor, *allowed: torch.dtype) -> None:
    """Raises ValueError unless the tensor's type is one of these."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}; it must be {names}"
        )
