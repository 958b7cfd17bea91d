"""The GPU's kernels: on the device where there is one, else in Triton's interpreter."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton

from tests.kernels.gpu.interpreter import cure

INTERPRETED: bool = triton.knobs.runtime.interpret

if INTERPRETED:
    cure()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors of a kernel test live."""
    if INTERPRETED:
        return torch.device("cpu")
    assert torch.cuda.is_available(), "Triton compiles for a device, and there is none"
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _silent_arithmetic() -> Iterator[None]:
    """A GPU overflows to infinity and makes NaN without a word; numpy would warn."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nothing was written to holds NaN, or integers that are no sizes or indices."""

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -123456789)

    def poisoned(allocate: Any) -> Any:
        return lambda *args, **kwargs: poison(allocate(*args, **kwargs))

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
