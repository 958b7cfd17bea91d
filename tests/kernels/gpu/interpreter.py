"""Triton's interpreter, cured of the narrow floating point types.

The interpreter computes with numpy, which has no bfloat16 and no float8: it holds their bit
patterns as unsigned integers, then adds and multiplies those, sums them, and cuts a float32's low
bits off where the hardware rounds to the nearest even. `cure` wraps the operations in question:
patterns become float32, the operation runs on these, and what it returns is rounded back.

Cured are arithmetic, comparisons, conversions, matrix products and sums. Functions like exp2 take
no narrow type anyway; scans and atomics stay ill: kernels widen to float32 before them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

Array = npt.NDArray[Any]
Method = Callable[..., Any]

_NARROW: dict[Any, tuple[torch.dtype, Any]] = {
    tl.bfloat16: (torch.bfloat16, np.uint16),
    tl.float8e4nv: (torch.float8_e4m3fn, np.uint8),
    tl.float8e5: (torch.float8_e5m2, np.uint8),
}


def _is_narrow(value: Any) -> bool:
    """Whether this holds bit patterns; the outcome of a comparison is bool under its old type."""
    if not isinstance(value, TensorHandle) or value.dtype.scalar not in _NARROW:
        return False
    return bool(value.data.dtype == _NARROW[value.dtype.scalar][1])


def _widen(value: Any) -> Any:
    if not _is_narrow(value):
        return value
    torch_type, _ = _NARROW[value.dtype.scalar]
    patterns = torch.from_numpy(np.ascontiguousarray(value.data))
    return TensorHandle(patterns.view(torch_type).float().numpy(), tl.float32)


def _narrow(data: Array, dtype: Any) -> Any:
    """Rounds to the nearest, ties to even; as on the hardware, too large a float8 saturates."""
    torch_type, numpy_type = _NARROW[dtype.scalar]
    wide = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    if torch_type.itemsize == 1:
        highest = torch.finfo(torch_type).max
        wide = wide.clamp(-highest, highest)
    patterns = wide.to(torch_type).view(torch.uint8 if torch_type.itemsize == 1 else torch.uint16)
    return TensorHandle(patterns.numpy().astype(numpy_type), dtype.scalar)


def _computed_wide(method: Method) -> Method:
    """An operation on two or three operands."""

    @wraps(method)
    def wide(self: Any, *args: Any) -> Any:
        if not any(map(_is_narrow, args)):
            return method(self, *args)
        # Of two operands the first gives the outcome its type, of three the last does.
        operands = [arg for arg in args if isinstance(arg, TensorHandle)]
        declared = operands[-1 if len(operands) == 3 else 0].dtype
        out = method(self, *map(_widen, args))
        if out.data.dtype == np.bool_:
            return TensorHandle(out.data, tl.int1)
        return _narrow(out.data, declared) if declared.scalar in _NARROW else out

    return wide


def _converted_wide(method: Method) -> Method:
    """A conversion between number formats, one of which may be narrow."""

    @wraps(method)
    def convert(self: Any, source: Any, target: Any, *rounding: Any) -> Any:
        if target.scalar in _NARROW:
            return _narrow(_widen(source).data, target)
        if _is_narrow(source):
            data = _widen(source).data.astype(interpreter._get_np_dtype(target.scalar))
            return TensorHandle(data, target.scalar)
        return method(self, source, target, *rounding)

    return convert


def _summed_wide(method: Method) -> Method:
    """A sum over an axis."""

    @wraps(method)
    def wide(self: Any, value: Any) -> Any:
        if not _is_narrow(value.handle):
            return method(self, value)
        dtype = value.dtype
        total = np.sum(_widen(value.handle).data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(_narrow(np.asarray(total), dtype).data, dtype)

    return wide


_CURES: tuple[tuple[type, str, Callable[[Method], Method]], ...] = (
    (InterpreterBuilder, "binary_op", _computed_wide),
    (InterpreterBuilder, "create_fma", _computed_wide),
    (InterpreterBuilder, "create_dot", _computed_wide),
    (InterpreterBuilder, "cast_impl", _converted_wide),
    (InterpreterBuilder, "create_fp_to_fp", _converted_wide),
    (ReduceOps, "sum", _summed_wide),
)
_ILL: tuple[Method, ...] = tuple(getattr(owner, name) for owner, name, _ in _CURES)


def cure() -> None:
    """Cures the interpreter of this process; again is harmless."""
    for (owner, name, wrapper), method in zip(_CURES, _ILL, strict=True):
        setattr(owner, name, wrapper(method))


@contextmanager
def uncured() -> Iterator[None]:
    """The interpreter as it was shipped, to show what the cure is for."""
    for (owner, name, _), method in zip(_CURES, _ILL, strict=True):
        setattr(owner, name, method)
    try:
        yield
    finally:
        cure()
