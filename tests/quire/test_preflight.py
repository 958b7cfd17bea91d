"""What cannot work on this machine or with this model is told before anything is started."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quire import LLM
from quire.door import TcpDoor
from quire.errors import ConfigurationError
from quire.models import ResolvedModel
from quire.options import StackOptions
from quire.preflight import check_machine, check_model
from quire.stack import Stack

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without one, wherever this runs."""
    monkeypatch.setattr("quire.preflight.GPU_TRACES", ("no-such-device",))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cuda"}, "--device is cuda; this machine has no GPU: neither a driver's file"),
        (
            {"kv_cache_memory": MEMORY + 1},
            f"--kv-cache-memory is {MEMORY + 1} bytes; this machine has {MEMORY}",
        ),
        (
            {"kv_cache_memory": "9000TiB", "device": "cpu"},
            f"--kv-cache-memory is {9000 << 40} bytes; this machine has {MEMORY}",
        ),
    ],
)
def test_what_this_machine_has_not_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_machine(StackOptions(**given))
    assert str(refused.value).startswith(message)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("given", [{}, {"device": "auto"}, {"kv_cache_memory": MEMORY}])
def test_what_may_be_is_left_to_the_worker(given: dict[str, Any]) -> None:
    check_machine(StackOptions(**given))


def test_where_there_may_be_a_gpu_nothing_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.preflight.GPU_TRACES", ("null",))
    check_machine(StackOptions(device="cuda"))
    check_machine(StackOptions(kv_cache_memory=MEMORY + 1))
    with pytest.raises(ConfigurationError, match="--kv-cache-memory"):
        check_machine(StackOptions(kv_cache_memory=MEMORY + 1, device="cpu"))


def test_a_driver_s_tool_is_a_trace_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("quire.preflight.GPU_TRACES", ())
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check_machine(StackOptions(device="cuda"))


def test_sequences_longer_than_the_model_can_be_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 96}))
    check_model(StackOptions(), tmp_path)
    check_model(StackOptions(max_model_len=96), tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        check_model(StackOptions(max_model_len=97), tmp_path)
    assert str(refused.value) == f"--max-model-len is 97; the model in {tmp_path} has 1 to 96"
    for unknown in ("{}", "[]", "{", '{"max_position_embeddings": "many"}'):
        config.write_text(unknown)
        check_model(StackOptions(max_model_len=97), tmp_path)


def test_fewer_blocks_than_one_sequence_needs_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 96}))
    check_model(StackOptions(num_blocks=6), tmp_path)
    check_model(StackOptions(num_blocks=2, max_model_len=32), tmp_path)
    check_model(StackOptions(num_blocks=3, block_size=32), tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        check_model(StackOptions(num_blocks=2), tmp_path)
    assert str(refused.value) == (
        "--num-blocks is 2, of 16 tokens each; one sequence of max_model_len 96 needs 6; "
        "it is enough for --max-model-len 32"
    )
    config.write_text("{}")
    check_model(StackOptions(num_blocks=2), tmp_path)
    with pytest.raises(ConfigurationError, match="max_model_len 48 needs 3"):
        check_model(StackOptions(num_blocks=2, max_model_len=48), tmp_path)


@pytest.mark.parametrize("option", ["ssl_keyfile", "ssl_ca_certs"])
def test_part_of_what_tls_needs_is_refused(option: str) -> None:
    given: dict[str, Any] = {option: "a.pem"}
    with pytest.raises(ConfigurationError, match=rf"^--{option.replace('_', '-')} is 'a.pem'; it"):
        TcpDoor("127.0.0.1", 0, 0, **given)


async def test_no_stack_is_made_that_could_not_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 96}))
    model = ResolvedModel(tmp_path, "tiny")
    with pytest.raises(ConfigurationError, match="--max-model-len is 97"):
        Stack(model, StackOptions(max_model_len=97))
    with pytest.raises(ConfigurationError, match="--kv-cache-memory"):
        Stack(model, StackOptions(kv_cache_memory=MEMORY + 1, device="cpu"))


def test_in_python_it_is_known_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"--max-model-len is 8193; the model in .* 8192"):
        LLM("smollm2", max_model_len=8193)
