"""A model whose weights are random: whole from a config.json, finite, and the same each time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.batch import AttentionBatch
from worker.kv_cache import KVCache
from worker.loader import LoadedModel, LoadError, load_model
from worker.models.registry import FAMILIES
from worker.random_weights import RandomWeights

CPU = torch.device("cpu")
NUM_TOKENS = 24


def write_config(directory: Path, architecture: str) -> Path:
    """A model of some depth, so that what grows from layer to layer shows."""
    raw: dict[str, Any] = {
        "architectures": [architecture],
        "vocab_size": 300,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 64,
    }
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def load(directory: Path, dtype: str = "float32") -> LoadedModel:
    return load_model(directory, dtype=dtype, device=CPU, load_format="dummy")


def logits(loaded: LoadedModel) -> torch.Tensor:
    """Of every token of a prompt."""
    batch = AttentionBatch(
        token_ids=torch.arange(NUM_TOKENS) * 7 % loaded.config.vocab_size,
        positions=torch.arange(NUM_TOKENS),
        cu_seqlens=torch.tensor([0, NUM_TOKENS], dtype=torch.int32),
        seq_lens=torch.tensor([NUM_TOKENS], dtype=torch.int32),
        block_table=torch.tensor([[2, 1]], dtype=torch.int32),
        num_decodes=0,
        sample_index=torch.arange(NUM_TOKENS),
    )
    return loaded.model.forward(batch, KVCache(loaded.config, 2, 16, loaded.dtype, CPU))


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logits_are_finite_and_tell_tokens_apart(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    got = logits(load(write_config(tmp_path, architecture), dtype))
    assert got.isfinite().all()
    assert 0.1 < got.std() < 10
    assert len(set(got.argmax(-1).tolist())) > NUM_TOKENS // 4


def test_weights_are_the_same_each_time(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "LlamaForCausalLM")
    first, second = load(directory), load(directory)
    assert torch.equal(logits(first), logits(second))
    assert first.revision == second.revision


def test_another_seed_is_another_model() -> None:
    shapes = {"a.weight": (3, 4)}
    one, other = (RandomWeights(shapes, s).read("a.weight", (), torch.float32, CPU) for s in (0, 1))
    assert not torch.equal(one, other)


def test_a_part_is_cut_from_the_whole() -> None:
    source = RandomWeights({"a.weight": (8, 6), "a.bias": (8,)})
    whole = source.read("a.weight", (), torch.float32, CPU)
    part = source.read("a.weight", (slice(2, 5), slice(3)), torch.float32, CPU)
    assert torch.equal(part, whole[2:5, :3])
    assert part.is_contiguous()
    assert source.read("a.bias", (slice(4),), torch.float32, CPU).tolist() == [0.0] * 4


def test_a_directory_without_weights_is_named_unless_they_are_random(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "LlamaForCausalLM")
    with pytest.raises(LoadError, match=r"no model\.safetensors"):
        load_model(directory, dtype="auto", device=CPU)
