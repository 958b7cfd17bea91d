"""The GPU's kernels: on the device where there is one, else in Triton's interpreter."""

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
