"""Packed matrices of a file: the same answers, to the last bit, as with those of one's memory."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from protos.blocks import BLOCK_SIZE
from tests.worker.builders import write_tiny_llama
from tests.worker.coded import code
from tests.worker.models.steps import Steps
from tests.worker.models.test_coded import WAYS
from tests.worker.models.variants import CPU, NUM_TOKENS, Case
from worker.backends import Wishes
from worker.checkpoint import Checkpoint
from worker.loader import LoadedModel, load_model
from worker.packed_cache import PackedCache


def test_of_each_family(case: Case, tmp_path: Path) -> None:
    check(case.directory, "auto", tmp_path)


@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_with_codes_made_at_load(tmp_path: Path, quantization: str, tied: bool) -> None:
    check(write_tiny_llama(tmp_path / "model", tied=tied), quantization, tmp_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tied", [True, False])
def test_with_codes_of_the_checkpoint(tmp_path: Path, way: str, tied: bool) -> None:
    plain = write_tiny_llama(tmp_path / "plain", tied=tied)
    check(code(plain, tmp_path / "coded", WAYS[way]), "auto", tmp_path)


def check(directory: Path, quantization: str, tmp_path: Path) -> None:
    """Of a worker with matrices of its own, one that writes a file, and one that finds it."""
    cache = PackedCache(tmp_path / "packed", least_bytes=0)
    own, writer, reader = (
        load_model(
            directory,
            dtype="float32",
            device=CPU,
            wishes=Wishes("native", quantization=quantization),
            packed_cache=packed_cache,
        )
        for packed_cache in (None, cache, cache)
    )
    expected = logits_of(own)
    assert torch.equal(logits_of(writer), expected)
    assert torch.equal(logits_of(reader), expected)
    (file,) = (tmp_path / "packed").glob("*/*.safetensors")
    assert own.mapped_bytes == 0
    assert writer.mapped_bytes == reader.mapped_bytes == file.stat().st_size
    assert own.weight_bytes == writer.weight_bytes == reader.weight_bytes


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    token_ids = torch.randint(0, loaded.config.vocab_size, (NUM_TOKENS,), generator=generator)
    case = Case(Path(), None, loaded, token_ids, torch.empty(0))
    return Steps(case, BLOCK_SIZE)((0, 0, NUM_TOKENS))


def test_who_finds_a_file_reads_vectors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_tiny_llama(tmp_path / "model", tied=False)
    cache, read = PackedCache(tmp_path / "packed", least_bytes=0), list[str]()
    through = Checkpoint.read

    def noted(
        checkpoint: Checkpoint,
        name: str,
        part: tuple[slice, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:
        read.append(name)
        return through(checkpoint, name, part, dtype, device)

    def read_by_a_worker() -> Sequence[str]:
        read.clear()
        wishes = Wishes("native")
        load_model(directory, dtype="auto", device=CPU, wishes=wishes, packed_cache=cache)
        return tuple(read)

    monkeypatch.setattr(Checkpoint, "read", noted)
    norms = {name for name in read_by_a_worker() if name.endswith("norm.weight")}
    assert len(norms) == 5
    found = read_by_a_worker()
    assert (set(found), len(found)) == (norms, 5)
