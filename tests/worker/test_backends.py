"""What computes a model: what was asked for, or why not."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.native import build
from kernels.native.build import choose, usable
from protos.blocks import BLOCK_SIZE
from worker.backends import Computed, NativeBackend, TorchBackend, Wishes, choose_backend
from worker.models.fields import UnsupportedModelError

CPU, FLOATS = torch.device("cpu"), torch.float32
AUTO, BY_NAME = Wishes("auto", num_threads=2), Wishes("native", num_threads=2)
USUAL = Computed(has_codes=False, device=CPU, dtype=FLOATS, world_size=1, max_model_len=64)


@pytest.mark.parametrize("wishes", [AUTO, BY_NAME, replace(AUTO, block_size=32)])
def test_native_kernels_where_they_can(wishes: Wishes) -> None:
    chosen = choose_backend(wishes, USUAL)
    assert chosen == NativeBackend(choose(), 2, 64, FLOATS, wishes.block_size or BLOCK_SIZE)
    assert chosen.name == f"native {usable()[0].name}"


@pytest.mark.parametrize(("asked", "size"), [(None, BLOCK_SIZE), (8, 8)])
def test_torch_by_its_name(asked: int | None, size: int) -> None:
    chosen = choose_backend(Wishes("torch", block_size=asked), USUAL)
    assert chosen == TorchBackend(CPU, FLOATS, size)


@pytest.mark.parametrize(
    ("has_codes", "asked", "expected"),
    [
        (False, "auto", torch.float32),
        (True, "auto", torch.float16),
        (False, "float16", torch.float16),
        (True, "float32", torch.float32),
    ],
)
def test_matrices_in_codes_go_with_short_keys_and_values(
    has_codes: bool, asked: str, expected: torch.dtype
) -> None:
    wishes = replace(AUTO, kv_cache_dtype=asked)
    assert choose_backend(wishes, replace(USUAL, has_codes=has_codes)).kv_dtype == expected


def check_reason(
    caplog: pytest.LogCaptureFixture,
    reason: str,
    computed: Computed = USUAL,
    *,
    by_name: Wishes = BY_NAME,
) -> None:
    """Asked for by name it is refused; else torch computes, and the log says why."""
    with pytest.raises(UnsupportedModelError) as caught:
        choose_backend(by_name, computed)
    assert str(caught.value) == f"--cpu-backend is native; {reason}"
    with caplog.at_level(logging.INFO):
        chosen = choose_backend(replace(by_name, cpu_backend="auto"), computed)
    assert chosen == TorchBackend(CPU, computed.dtype, by_name.block_size or BLOCK_SIZE)
    assert caplog.messages[-1] == f"torch computes: {reason}"


def test_what_they_cannot_do(caplog: pytest.LogCaptureFixture) -> None:
    in_half = "--dtype is bfloat16; native kernels compute in float32"
    check_reason(caplog, in_half, replace(USUAL, dtype=torch.bfloat16))
    ranks = "--tensor-parallel-size is 2; native kernels run on one rank"
    check_reason(caplog, ranks, replace(USUAL, world_size=2))
    blocks = "--block-size is 24; native kernels take multiples of 16"
    check_reason(caplog, blocks, by_name=replace(BY_NAME, block_size=24))


def test_machines_on_which_they_are_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ", ".join(each.name for each in usable())
    unknown = f"--cpu-isa is none; this processor has {names}"
    check_reason(caplog, unknown, by_name=replace(BY_NAME, cpu_isa="none"))
    monkeypatch.setattr(build, "IN_PACKAGE", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert build.built(choose()) is None
    portable = usable()[-1].name  # no other test has loaded it through `library.load` by then
    broken = "false does not compile the kernels: it ended with 1"
    with pytest.raises(build.NativeUnavailableError, match=broken):
        build.build(choose(portable))
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(build.NativeUnavailableError, match=r"there is no C\+\+ compiler"):
        build.build(choose(portable))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    check_reason(caplog, "there are no kernels for riscv64")


def test_torch_keeps_keys_and_values_as_it_keeps_weights() -> None:
    wishes = Wishes("torch", kv_cache_dtype="float16")
    with pytest.raises(UnsupportedModelError) as caught:
        choose_backend(wishes, USUAL)
    assert str(caught.value) == (
        "--kv-cache-dtype is float16; torch keeps KV as it keeps weights, in float32"
    )


def test_a_gpu_is_no_matter_of_theirs(caplog: pytest.LogCaptureFixture) -> None:
    gpu = replace(USUAL, device=torch.device("cuda"))
    assert choose_backend(AUTO, gpu) == TorchBackend(gpu.device, FLOATS, BLOCK_SIZE)
    assert not caplog.messages
    with pytest.raises(UnsupportedModelError, match="the model runs on cuda"):
        choose_backend(BY_NAME, gpu)
