"""Copies of whole KV blocks in Triton against the specification."""

import pytest
import torch

from kernels import reference
from kernels.gpu.block_copy import copy_blocks
from tests.kernels.gpu.guarded import Guarded, random


def blocks(*ids: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int32, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(
    "block", [(1, 8, 2), (3, 8, 64), (2, 24, 64)], ids=["tiny", "part of a program", "over one"]
)
def test_blocks_are_copied_in_every_layer(
    block: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    storage = random(4, 6, *block, dtype=dtype, device=device)
    given = Guarded(storage)
    sources, destinations = blocks(5, 1, 5, device=device), blocks(2, 4, 3, device=device)
    copy_blocks(given.tensor, sources, destinations)
    expected = storage.float().clone()
    reference.copy_blocks(expected, sources, destinations)
    assert torch.equal(given.tensor.float(), expected)
    assert not torch.equal(given.tensor.float(), storage.float())
    assert given.untouched()


def test_no_pairs_copy_nothing(device: torch.device) -> None:
    storage = random(2, 3, 4, device=device)
    copy_blocks(storage, blocks(device=device), blocks(device=device))
    assert torch.equal(storage, random(2, 3, 4, device=device))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    storage = torch.zeros(2, 3, 4, device=device)
    pair = blocks(1, 2, device=device)
    with pytest.raises(ValueError, match=r"destinations has shape \(1,\); it must be \(2,\)"):
        copy_blocks(storage, pair, pair[:1])
    with pytest.raises(ValueError, match="sources is float32; it must be int32 or int64"):
        copy_blocks(storage, pair.float(), pair)
    with pytest.raises(ValueError, match="storage has blocks of 2 bytes"):
        copy_blocks(torch.zeros(2, 3, 1, dtype=torch.float16, device=device), pair, pair)
    with pytest.raises(ValueError, match=r"storage has strides .*; it must be contiguous"):
        copy_blocks(storage.transpose(0, 1), pair, pair)
