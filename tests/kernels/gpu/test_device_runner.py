"""Whole steps on the device: the kernels, the tables and the loop together, against the host's."""

from functools import partial
from pathlib import Path

import pytest
import torch

from kernels import ops
from kernels.gpu import sampler, step
from kernels.gpu.sampler_tiles import Tiles
from tests.worker.builders import VOCAB_SIZE, write_tiny_llama
from tests.worker.runners import (
    NUM_SLOTS,
    generate,
    make_device_runner,
    make_host_runner,
    tenants,
)
from worker.loader import LoadedModel, load_model
from worker.plans import Sampling


def triton_step_ops(device: torch.device) -> ops.DeviceStepOps:
    tiles = Tiles.empty(NUM_SLOTS, VOCAB_SIZE, device)
    return ops.DeviceStepOps(
        apply_writes=step.apply_writes,
        decode_inputs=step.decode_inputs,
        chunk_inputs=step.chunk_inputs,
        sample_and_commit=partial(sampler.sample_and_commit, tiles=tiles),
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose heads are as wide as the kernels' narrowest."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", head_dim=64)


@pytest.fixture(scope="module")
def expected_model(directory: Path) -> LoadedModel:
    """On the CPU."""
    return load_model(directory, dtype="float32", device=torch.device("cpu"))


@pytest.mark.parametrize("buckets", [(), (4,)])
def test_the_device_says_what_the_host_says(
    directory: Path,
    expected_model: LoadedModel,
    buckets: tuple[int, ...],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2, num_logprobs=2)
    sequences = [
        *list(tenants(Sampling()).values())[:2],
        tenants(sampling)[2],
    ]
    expected = generate(make_host_runner(expected_model), sequences, chunk=25)
    gpu_ops = ops.select(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(ops, "select", lambda device, dtype: gpu_ops)
    monkeypatch.setattr("worker.backends.warm_up", lambda ops, device, dtype: None)
    loaded = load_model(directory, dtype="float32", device=device)
    runner = make_device_runner(
        loaded, buckets=buckets, step_ops=triton_step_ops(device), device=device
    )
    assert generate(runner, sequences, chunk=25) == expected
    runner.close()
