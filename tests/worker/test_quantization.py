"""--quantization: what the checkpoint has, floats, or codes made at load."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from kernels.quantized import quantize
from tests.worker.coded import KINDS, code
from worker.backends import Wishes
from worker.loader import LoadedModel, LoadError, load_model, open_model
from worker.models.decoder import Decoder

CPU = torch.device("cpu")


def loaded_with(directory: Path, quantization: str, cpu_backend: str = "torch") -> LoadedModel:
    wishes = Wishes(cpu_backend, num_threads=1, quantization=quantization)
    return load_model(directory, dtype="float32", device=CPU, wishes=wishes)


@pytest.fixture
def coded(tiny_directory: Path, tmp_path: Path) -> Path:
    return code(tiny_directory, tmp_path / "coded", lambda name: KINDS["four bits"])


@pytest.mark.parametrize("bits", [8, 4])
def test_floats_get_the_nearest_codes_as_they_are_read(tiny_directory: Path, bits: int) -> None:
    model = loaded_with(tiny_directory, f"int{bits}").model
    stored = safetensors.torch.load_file(tiny_directory / "model.safetensors")
    assert isinstance(model, Decoder)
    expected = quantize(stored["model.embed_tokens.weight"], 8, 32).dequantized()
    assert isinstance(model.embedding.weight, torch.Tensor)
    assert torch.equal(model.embedding.weight, expected)
    assert torch.equal(model.norm.weight, stored["model.norm.weight"])


def test_what_they_take_is_known_before_they_are_made(tiny_directory: Path) -> None:
    sizes = []
    for quantization in ("none", "int8", "int4"):
        wishes = Wishes("native", num_threads=1, quantization=quantization)
        opened = open_model(tiny_directory, dtype="float32", device=CPU, wishes=wishes)
        sizes.append(opened.weight_bytes)
        assert sizes[-1] == opened.load().weight_bytes
    floats, eight, four = sizes
    assert floats > 2 * eight > 2.5 * four


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_codes_are_not_coded_again(coded: Path, quantization: str) -> None:
    with pytest.raises(LoadError) as caught:
        loaded_with(coded, quantization)
    assert str(caught.value) == (
        f"model {coded}: --quantization is {quantization}; the matrices of this checkpoint are in "
        "codes already (4 bits in groups of 32: 15): auto, the default, keeps them, none makes "
        "floats of them"
    )


def test_the_revision_tells_apart_what_says_other_logits(tiny_directory: Path, coded: Path) -> None:
    """Whatever computes; codes that a checkpoint has stand for the same floats."""
    revisions = []
    for directory, asked in ((tiny_directory, ("auto", "int8", "int4")), (coded, ("auto",))):
        for quantization in asked:
            with_torch = loaded_with(directory, quantization).revision
            assert loaded_with(directory, quantization, "native").revision == with_torch
            revisions.append(with_torch)
    assert len(set(revisions)) == 4
    assert loaded_with(coded, "none").revision == revisions[-1]
