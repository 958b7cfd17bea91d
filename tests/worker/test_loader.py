"""A directory becomes a model, or one line says why not; nothing is half loaded."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from kernels.jit import one_compiles
from tests.worker.builders import write_tiny_llama
from worker.loader import LoadedModel, LoadError, load_model
from worker.models.decoder import Decoder

WEIGHTS = "model.safetensors"


@pytest.fixture
def directory(tiny_directory: Path, tmp_path: Path) -> Path:
    """A model directory of this test's own."""
    return Path(shutil.copytree(tiny_directory, tmp_path / "model"))


def load(path: Path, **options: Any) -> LoadedModel:
    return load_model(path, **{"dtype": "auto", "device": torch.device("cpu"), **options})


def test_of_two_that_start_together_one_compiles(
    tiny_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(1) as pool:
        with one_compiles():
            loading = pool.submit(load, tiny_directory)
            for _ in range(3000):
                if "another process compiles the CPU's kernels; waiting for it" in caplog.text:
                    break
                time.sleep(0.01)
            else:
                pytest.fail(f"it does not wait: {caplog.text}")
            assert not loading.done()
        assert loading.result(timeout=300).config.vocab_size


def set_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, directory / WEIGHTS)


def shard(directory: Path) -> dict[str, str]:
    """Splits the weights in two files with an index; returns the index's map."""
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{number}.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def refusal(directory: Path, **options: Any) -> str:
    with pytest.raises(LoadError) as caught:
        load(directory, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    return message


def test_a_model_says_what_the_worker_must_know(directory: Path) -> None:
    loaded = load(directory)
    assert loaded.max_model_len == 96
    assert loaded.dtype == torch.float32
    plain = sum(t.numel() for t in safetensors.torch.load_file(directory / WEIGHTS).values())
    head_copy = loaded.config.vocab_size * loaded.config.hidden_size
    assert loaded.weight_bytes in (4 * plain, 4 * (plain + head_copy))


def test_the_type_of_the_weights_can_be_chosen(directory: Path) -> None:
    loaded = load(directory, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert loaded.weight_bytes < load(directory).weight_bytes


def test_a_shorter_length_can_be_asked_for(directory: Path) -> None:
    assert load(directory, max_model_len=40).max_model_len == 40
    assert "max_model_len is 97; this model has 1 to 96" in refusal(directory, max_model_len=97)
    assert "max_model_len is 0" in refusal(directory, max_model_len=0)


def test_the_revision_follows_the_content(directory: Path, tmp_path: Path) -> None:
    first = load(directory).revision
    again = shutil.copytree(directory, tmp_path / "moved")
    assert load(again).revision == first
    # A fine-tune: same configuration, names, shapes and sizes.
    change_tensors(again, lambda tensors: [tensor.mul_(1.01) for tensor in tensors.values()])
    assert load(again).revision != first
    set_config(directory, rope_theta=5000.0)
    assert load(directory).revision != first


def embedding_of(loaded: LoadedModel) -> torch.Tensor:
    assert isinstance(loaded.model, Decoder)
    assert isinstance(loaded.model.embedding.weight, torch.Tensor)
    return loaded.model.embedding.weight


def test_shards_and_one_file_are_the_same_weights(directory: Path) -> None:
    whole = load(directory)
    shard(directory)
    parts = load(directory)
    assert torch.equal(embedding_of(parts), embedding_of(whole))
    assert parts.weight_bytes == whole.weight_bytes


def test_tensors_that_old_checkpoints_carry_are_ignored(directory: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    change_tensors(directory, lambda tensors: tensors.update(extra))
    load(directory)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")


def test_a_directory_without_a_configuration(directory: Path) -> None:
    (directory / "config.json").unlink()
    assert "no config.json" in refusal(directory)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[]", "not a JSON object")]
)
def test_a_damaged_configuration(directory: Path, text: str, message: str) -> None:
    (directory / "config.json").write_text(text)
    assert message in refusal(directory)


def test_an_unknown_architecture_comes_with_the_known_ones(directory: Path) -> None:
    set_config(directory, architectures=["FalconForCausalLM"])
    message = refusal(directory)
    assert "'FalconForCausalLM' is not supported" in message
    assert "LlamaForCausalLM, MistralForCausalLM" in message


def test_no_weights(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    assert "only safetensors weights are loaded" in refusal(directory)


@pytest.mark.parametrize("kept", [0, 4, 8, 500, -1, -1000])
def test_truncated_weights(directory: Path, kept: int) -> None:
    data = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(data[:kept])
    assert "model.safetensors is truncated or damaged" in refusal(directory)


def test_bytes_after_the_weights(directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    assert "truncated or damaged" in refusal(directory)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_damaged_header(directory: Path, header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (directory / WEIGHTS).write_bytes(data)
    assert "model.safetensors has a damaged header" in refusal(directory)


def test_missing_tensors_are_named(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.pop("model.norm.weight"))
    assert "1 tensor is missing: model.norm.weight" in refusal(directory)


def test_unknown_tensors_are_named(directory: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}
    change_tensors(directory, lambda tensors: tensors.update(bias))
    message = refusal(directory)
    assert "no place in this architecture: model.layers.0.self_attn.q_proj.bias" in message


def test_a_misshapen_tensor_is_named_with_both_shapes(directory: Path) -> None:
    set_config(directory, intermediate_size=100)
    message = refusal(directory)
    assert "mlp.gate_proj.weight has shape [96, 64]; the config asks for [100, 64]" in message


def test_weights_that_are_not_floating_point(directory: Path) -> None:
    norm = {"model.norm.weight": torch.ones(64, dtype=torch.int32)}
    change_tensors(directory, lambda tensors: tensors.update(norm))
    assert "model.norm.weight has type I32" in refusal(directory)


def test_an_index_that_names_an_absent_file(directory: Path) -> None:
    shard(directory)
    (directory / "model-00001.safetensors").unlink()
    assert "names model-00001.safetensors, which is not there" in refusal(directory)


def test_an_index_that_promises_too_much(directory: Path) -> None:
    weight_map = shard(directory) | {"model.extra": "model-00000.safetensors"}
    index = directory / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "the index promises tensors that no file has: model.extra" in refusal(directory)


def test_an_index_must_not_point_outside_its_directory(directory: Path, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "other")
    weight_map = dict.fromkeys(shard(directory), f"../other/{WEIGHTS}")
    index = directory / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "which is not there" in refusal(directory)


@pytest.mark.parametrize("text", ["", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index(directory: Path, text: str) -> None:
    (directory / f"{WEIGHTS}.index.json").write_text(text)
    assert "model.safetensors.index.json is not a valid index" in refusal(directory)


def test_a_tensor_in_two_files(directory: Path) -> None:
    shard(directory)
    extra = {"model.norm.weight": torch.ones(64)}
    for number in (0, 1):
        file = directory / f"model-0000{number}.safetensors"
        safetensors.torch.save_file(safetensors.torch.load_file(file) | extra, file)
    assert "model.norm.weight is in both" in refusal(directory)
