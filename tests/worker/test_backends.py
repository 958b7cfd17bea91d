"""What computes a model: what was asked for, or why not."""

import logging
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from protos.blocks import BLOCK_SIZE, OPENVINO_BLOCK_SIZE
from worker.backends import OpenVINOBackend, TorchBackend, Wishes, choose_backend
from worker.loader import read_config
from worker.models.config import ModelConfig
from worker.models.fields import UnsupportedModelError
from worker.models.registry import parse_config

CPU, FLOATS = torch.device("cpu"), torch.float32
AUTO, BY_NAME = Wishes("auto", num_threads=2), Wishes("openvino", num_threads=2)


@pytest.fixture
def config(tiny_directory: Path) -> ModelConfig:
    return parse_config(read_config(tiny_directory))


@pytest.fixture
def is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has it."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2026.4.9")


@pytest.mark.usefixtures("is_here")
@pytest.mark.parametrize("wishes", [AUTO, BY_NAME, replace(AUTO, block_size=OPENVINO_BLOCK_SIZE)])
def test_openvino_where_it_can(config: ModelConfig, wishes: Wishes) -> None:
    chosen = choose_backend(wishes, config, CPU, FLOATS, world_size=1)
    assert chosen == OpenVINOBackend(num_threads=2)
    assert chosen.block_size == OPENVINO_BLOCK_SIZE


@pytest.mark.parametrize(("asked", "size"), [(None, BLOCK_SIZE), (8, 8)])
def test_torch_unless_something_else_is_asked_for(
    config: ModelConfig, asked: int | None, size: int
) -> None:
    chosen = choose_backend(Wishes(block_size=asked), config, CPU, FLOATS, world_size=1)
    assert chosen == TorchBackend(CPU, FLOATS, size)


def check_reason(
    caplog: pytest.LogCaptureFixture,
    config: ModelConfig,
    reason: str,
    *,
    dtype: torch.dtype = FLOATS,
    world_size: int = 1,
    block_size: int | None = None,
) -> None:
    """Asked for by name it is refused; else torch computes, and the log says why."""
    by_name, auto = (replace(wishes, block_size=block_size) for wishes in (BY_NAME, AUTO))
    with pytest.raises(UnsupportedModelError) as caught:
        choose_backend(by_name, config, CPU, dtype, world_size)
    assert str(caught.value) == f"--cpu-backend is openvino; {reason}"
    with caplog.at_level(logging.INFO):
        chosen = choose_backend(auto, config, CPU, dtype, world_size)
    assert chosen == TorchBackend(CPU, dtype, block_size or BLOCK_SIZE)
    assert caplog.messages[-1] == f"torch computes, not OpenVINO: {reason}"


@pytest.mark.usefixtures("is_here")
def test_what_it_cannot_do(caplog: pytest.LogCaptureFixture, config: ModelConfig) -> None:
    capped = replace(config, attention_softcap=50.0)
    check_reason(caplog, capped, "the model caps its attention scores")
    in_half = "--dtype is bfloat16; it computes in float32"
    check_reason(caplog, config, in_half, dtype=torch.bfloat16)
    ranks = "--tensor-parallel-size is 2; it runs on one rank"
    check_reason(caplog, config, ranks, world_size=2)
    blocks = "--block-size is 16; its attention takes 32"
    check_reason(caplog, config, blocks, block_size=16)


@pytest.mark.usefixtures("is_here")
def test_machines_on_which_it_is_missing(
    caplog: pytest.LogCaptureFixture, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2027.1.0")
    newer = "openvino is 2027.1.0; its attention is known of 2026.4.x"
    check_reason(caplog, config, newer)

    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", none)
    check_reason(caplog, config, "the package openvino is not installed")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    check_reason(caplog, config, "its attention has not been tried on aarch64")


def test_a_gpu_is_no_matter_of_it(config: ModelConfig, caplog: pytest.LogCaptureFixture) -> None:
    gpu = torch.device("cuda")
    assert choose_backend(AUTO, config, gpu, FLOATS, 1) == TorchBackend(gpu, FLOATS, BLOCK_SIZE)
    assert not caplog.messages
    with pytest.raises(UnsupportedModelError, match="the model runs on cuda"):
        choose_backend(BY_NAME, config, gpu, FLOATS, 1)
