"""Matrices in codes: torch reads them as what they say, native kernels read them in each step."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kernels.native.build import usable
from protos.blocks import BLOCK_SIZE
from tests.worker.builders import write_tiny_llama
from tests.worker.coded import KINDS, Kind, code
from tests.worker.models.steps import Steps
from tests.worker.models.variants import CPU, NUM_TOKENS, Case
from worker.backends import WITH_TORCH, Wishes
from worker.checkpoint import Checkpoint
from worker.loader import load_model, open_model

NATIVE = Wishes("native", num_threads=2)
BEST, *OTHERS = (instructions.name for instructions in usable())
ISAS = [BEST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


def of_one_kind(kind: Kind) -> Callable[[str], Kind | None]:
    return lambda name: kind


def mixed(name: str) -> Kind | None:
    """Parts of one projection differ, as in files of several formats."""
    if "v_proj" in name:
        return KINDS["eight bits"]
    if "up_proj" in name or "layers.1.self_attn.o" in name:
        return None
    return KINDS["four bits"]


WAYS = {name: of_one_kind(kind) for name, kind in KINDS.items()} | {"mixed": mixed}


@pytest.fixture(scope="module", params=list(WAYS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coded")
    return code(write_tiny_llama(root / "plain"), root / "coded", WAYS[request.param])


def case_of(directory: Path, wishes: Wishes) -> Case:
    loaded = load_model(directory, dtype="float32", device=CPU, wishes=wishes)
    generator = torch.Generator().manual_seed(5)
    token_ids = torch.randint(0, loaded.config.vocab_size, (NUM_TOKENS,), generator=generator)
    nothing = torch.empty(0)
    return Case(directory, None, loaded, token_ids, nothing)


def steps_of(directory: Path, wishes: Wishes) -> Steps:
    return Steps(case_of(directory, wishes), BLOCK_SIZE)


@pytest.fixture(scope="module")
def expected(directory: Path) -> torch.Tensor:
    """Of the same model in floats."""
    return steps_of(directory / "floats", WITH_TORCH)((0, 0, NUM_TOKENS))


def test_torch_computes_with_what_they_say(directory: Path, expected: torch.Tensor) -> None:
    assert torch.equal(steps_of(directory, WITH_TORCH)((0, 0, NUM_TOKENS)), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_native_kernels_compute_with_the_same_values(
    directory: Path, expected: torch.Tensor, isa: str
) -> None:
    """But for eight bits of what they are multiplied with, layer after layer."""
    for kv_cache_dtype in ("float32", "float16"):
        wishes = replace(NATIVE, cpu_isa=isa, kv_cache_dtype=kv_cache_dtype)
        got = steps_of(directory, wishes)((0, 0, NUM_TOKENS))
        assert (got - expected).norm() < 6e-2 * expected.norm()


@pytest.mark.parametrize("isa", ISAS)
def test_a_batch_says_what_each_says_alone(directory: Path, isa: str) -> None:
    """To the last bit."""
    steps = steps_of(directory, replace(NATIVE, cpu_isa=isa))
    whole = steps((0, 0, NUM_TOKENS))
    pieces = [steps((1, a, b)) for a, b in pairwise([0, 1, 7, 23, NUM_TOKENS])]
    assert torch.equal(torch.cat(pieces), whole)
    steps((0, 0, 9), (1, 0, 30), (2, 0, 20))
    got = steps((1, 30, 31), (0, 9, 10), (2, 20, 21), (3, 0, 17), num_decodes=3)
    wanted = torch.cat([whole[a:b] for a, b in ((30, 31), (9, 10), (20, 21), (0, 17))])
    assert torch.equal(got, wanted)


def test_their_size_is_known_before_they_are_read(directory: Path) -> None:
    opened = open_model(directory, dtype="auto", device=CPU, wishes=NATIVE)
    floats = open_model(directory, dtype="auto", device=CPU, wishes=WITH_TORCH)
    assert opened.weight_bytes == opened.load().weight_bytes < floats.weight_bytes
    names = [entry for entry in Checkpoint.open(directory).entries.values() if entry.codes]
    assert names
