"""What a model is, and how much memory it takes, is known at once, before a weight is read."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.native.outline import outline
from kernels.native.packing import PackedLinear
from kernels.quantized import Matrix, QuantizedMatrix, quantize
from tests.worker.coded import KINDS

_OPEN = """
import sys
from pathlib import Path
import torch
from worker.backends import Wishes
from worker.loader import open_model

wishes = Wishes(sys.argv[2], quantization=sys.argv[3])
opened = open_model(Path(sys.argv[1]), dtype="auto", device=torch.device("cpu"), wishes=wishes)
assert opened.weight_bytes > 0
print(sorted({"sympy", "torch._dynamo"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("backend", "quantization"),
    [("native", "none"), ("native", "int8"), ("native", "int4"), ("torch", "none")],
)
def test_torch_does_not_load_its_compiler(
    tiny_directory: Path, backend: str, quantization: str
) -> None:
    """Which takes a second, and which it does for the sizes of most of what has no data."""
    command = [sys.executable, "-c", _OPEN, str(tiny_directory), backend, quantization]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def without_data(matrix: Matrix) -> Matrix:
    if isinstance(matrix, torch.Tensor):
        return matrix.to("meta")
    offset = None if matrix.offset is None else matrix.offset.to("meta")
    return QuantizedMatrix(matrix.codes.to("meta"), matrix.scale.to("meta"), offset)


def sizes(linear: PackedLinear) -> list[tuple[object, ...]]:
    return [
        (
            part.shape,
            part.kind,
            part.group_size,
            *(
                None if tensor is None else (tensor.shape, tensor.dtype)
                for tensor in (part.values, part.scales, part.offsets)
            ),
        )
        for part in linear.parts
    ]


@pytest.mark.parametrize("kind", ["floats", "short floats", *KINDS])
def test_sizes_of_what_is_packed(kind: str) -> None:
    """Of a group of maps whose rows fill no panel."""
    torch.manual_seed(0)
    matrices: list[Matrix] = []
    for rows in (40, 8, 21):
        floats = torch.randn(rows, 64)
        short = floats.bfloat16() if kind == "short floats" else floats
        matrices.append(KINDS[kind](floats) if kind in KINDS else short)
    found = outline([without_data(matrix) for matrix in matrices])
    assert sizes(found) == sizes(PackedLinear.of(matrices))
    assert all(part.values.is_meta for part in found.parts)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_what_has_no_data(bits: int) -> None:
    floats = torch.randn(5, 96)
    coded, sized = quantize(floats, bits, 32), quantize(floats.to("meta"), bits, 32)
    assert sized.is_meta
    assert not coded.is_meta
    assert (sized.shape, sized.bits, sized.group_size) == (coded.shape, coded.bits, 32)
    assert (sized.offset is None, sized.scale.dtype) == (coded.offset is None, coded.scale.dtype)
