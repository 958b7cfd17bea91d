"""Products of the native kernels with matrices of every kind, by themselves."""

from collections.abc import Callable

import pytest
import torch

from kernels.native import library
from kernels.native.build import usable
from kernels.native.packing import PackedLinear
from kernels.quantized import Matrix, QuantizedMatrix, dense
from tests.worker.coded import KINDS

ISAS = [instructions.name for instructions in usable()]
COLUMNS = 96
MATRICES: dict[str, Callable[[torch.Tensor], Matrix]] = {
    **KINDS,
    "float32": lambda matrix: matrix,
    "float16": lambda matrix: matrix.half().float(),
    "bfloat16": lambda matrix: matrix.bfloat16().float(),
}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def rounded(x: torch.Tensor, terms: int) -> torch.Tensor:
    """What the kernels multiply codes with."""
    greatest = 127 if terms == 1 else 127 * 256
    groups = x.view(-1, 32)
    most = groups.abs().amax(1, keepdim=True)
    codes = torch.where(most > 0, groups * (greatest / most), 0).round()
    return (codes.double() * (most / greatest)).view(x.shape)


def product(
    matrices: list[Matrix], x: torch.Tensor, isa: str, num_threads: int, terms: int = 1
) -> torch.Tensor:
    """x · Wᵀ, as the head of a model that has nothing else."""
    linear = PackedLinear.of(matrices)
    parts = (library.Matrix * len(linear.parts))(*(part.described() for part in linear.parts))
    rows = sum(part.shape[0] for part in linear.parts)
    decoder = library.Decoder(hidden_size=x.shape[1], vocab_size=rows)
    decoder.head = library.Linear(rows, len(parts), parts, None, terms)
    index, out = torch.arange(len(x)), torch.empty(len(x), rows)
    engine = library.Engine(library.load(isa), num_threads)
    engine.head(decoder, x.data_ptr(), index.data_ptr(), len(x), True, out.data_ptr())
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("num_outputs", [5, 200])
@pytest.mark.parametrize("terms", [1, 2])
def test_products_of_any_number_of_rows(name: str, isa: str, num_outputs: int, terms: int) -> None:
    matrix = MATRICES[name](draw(num_outputs, COLUMNS))
    x = draw(111, COLUMNS)
    x[3] = 0
    x[4, 40] = 1e4  # what shares its scale is rounded to nothing
    read = rounded(x, terms) if isinstance(matrix, QuantizedMatrix) else x.double()
    weights = dense(matrix).double().T
    whole = product([matrix], x, isa, 2, terms)
    most = read.abs().sum(1, keepdim=True) * weights.abs().max()
    assert ((whole - read @ weights).abs() <= 1e-6 * most).all()
    for count in (1, 2, 3, 4, 5, 8, 13):
        assert torch.equal(product([matrix], x[:count], isa, 1, terms), whole[:count])


@pytest.mark.parametrize("isa", ISAS)
def test_one_above_the_other(isa: str) -> None:
    matrices = [
        MATRICES[name](draw(48, COLUMNS)) for name in ("four bits", "float32", "eight bits")
    ]
    x = draw(7, COLUMNS)
    apart = [product([matrix], x, isa, 1) for matrix in matrices]
    assert torch.equal(product(matrices, x, isa, 2), torch.cat(apart, 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["four bits", "eight bits", "eight bits about zero"])
@pytest.mark.parametrize("terms", [1, 2])
def test_codes_and_activations_at_the_end_of_their_range(name: str, isa: str, terms: int) -> None:
    """Where sums of products are greatest, and saturate if they are kept in too few bits."""
    matrix = torch.ones(32, COLUMNS)
    matrix[:, ::32] = -1.0
    x = torch.ones(5, COLUMNS)
    quantized = MATRICES[name](matrix)
    expected = x.double() @ dense(quantized).double().T
    assert torch.allclose(product([quantized], x, isa, 1, terms).double(), expected, rtol=1e-5)
