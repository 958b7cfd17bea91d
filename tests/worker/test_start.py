"""A worker that starts with what was asked for, or says in a line why it cannot."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.worker.fake_scheduler import FakeScheduler
from tests.worker.processes import running_worker
from tests.worker.test_encoder import write_model as write_encoder
from worker import ledger
from worker.encoder_loader import OpenedEncoder
from worker.loader import OpenedModel
from worker.options import Options, StartError
from worker.parallel import Group
from worker.place import SOLE
from worker.sizes import default_step_tokens
from worker.start import hello, start

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "max_num_seqs", "expected"),
    [("cpu", 256, 256), ("cpu", 8, 256), ("cpu", 600, 600), ("cpu", 4000, 2048), ("cuda", 8, 2048)],
)
def test_a_cpu_has_short_steps_but_a_token_for_each_slot(
    device: str, max_num_seqs: int, expected: int
) -> None:
    assert default_step_tokens(torch.device(device), max_num_seqs) == expected


def test_the_step_that_was_asked_for_stands(tiny_directory: Path) -> None:
    asked = start(options(tiny_directory, max_num_batched_tokens=48), CPU, Group(SOLE))
    assert asked.sizes.max_num_batched_tokens == 48
    assert start(options(tiny_directory), CPU, Group(SOLE)).sizes.max_num_batched_tokens == 256


def test_an_encoder_computes_prompts_whole(tmp_path: Path) -> None:
    """No sequence waits for the end of its step, and a prompt longer than that has no place."""
    started = start(options(write_encoder(tmp_path)), CPU, Group(SOLE))
    assert started.sizes.max_num_batched_tokens == 2048


def test_what_encoders_do_not_have(tmp_path: Path) -> None:
    asked = options(write_encoder(tmp_path))
    with pytest.raises(StartError, match=r"^--quantization is int8; an encoder is computed in"):
        start(replace(asked, quantization="int8"), CPU, Group(SOLE))
    with pytest.raises(StartError, match=r"^--cpu-backend is native; torch computes encoders$"):
        start(replace(asked, cpu_backend="native"), CPU, Group(SOLE))
    with pytest.raises(StartError, match=r"^--kv-cache-dtype is float16; this model is an encoder"):
        start(replace(asked, kv_cache_dtype="float16"), CPU, Group(SOLE))


def test_codes_at_load_are_for_cpus(tiny_directory: Path) -> None:
    asked = replace(options(tiny_directory), quantization="int4")
    with pytest.raises(StartError, match=r"^--quantization is int4; it is for CPUs$"):
        start(asked, torch.device("cuda"), Group(SOLE))


async def only_error(*arguments: object) -> str:
    """The one `error:` line of a worker that must exit with code 2."""
    async with running_worker(*arguments) as worker:
        code, output, log = await worker.end()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert (code, output, len(errors)) == (2, "", 1), log
    assert "Traceback" not in log
    return errors[0]


async def test_a_missing_directory(tmp_path: Path) -> None:
    missing = tmp_path / "nothing-here"
    assert await only_error("--model", missing) == f"error: model {missing}: no such directory"


async def test_not_enough_memory_for_one_sequence(tiny_directory: Path) -> None:
    assert await only_error("--model", tiny_directory, "--kv-cache-memory", "20KiB") == (
        "error: one sequence of max_model_len 96 needs 56.00 KiB of KV memory; "
        "--kv-cache-memory gives 20.00 KiB, enough for --max-model-len 16"
    )


def options(
    model: Path, kv_cache_memory: int | None = None, max_num_batched_tokens: int | None = None
) -> Options:
    """As they are without any flag."""
    return Options(
        model=model,
        scheduler="unix:/nowhere",
        served_model_name="tiny",
        max_model_len=None,
        block_size=16,
        num_blocks=None,
        kv_cache_memory=kv_cache_memory,
        max_num_seqs=4,
        max_num_batched_tokens=max_num_batched_tokens,
        dtype="auto",
        load_format="auto",
        enforce_eager=False,
        device="cpu",
        cpu_backend="torch",
        cpu_isa="auto",
        kv_cache_dtype="auto",
        quantization="auto",
        gpu_memory_utilization=0.9,
        num_threads=1,
        threads_are_given=True,
        replica_id=None,
        metrics_host="127.0.0.1",
        metrics_port=0,
    )


def test_no_weight_is_read_when_one_sequence_cannot_fit(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenedModel, "load", lambda opened: pytest.fail("weights were read"))
    with pytest.raises(StartError, match=r"gives 20\.00 KiB"):
        start(options(tiny_directory, 20 << 10), CPU, Group(SOLE))


def test_no_weight_is_read_when_they_cannot_fit(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenedModel, "load", lambda opened: pytest.fail("weights were read"))
    monkeypatch.setattr(ledger, "free_bytes", lambda device: 100 << 10)
    with pytest.raises(StartError, match=r"^the weights need .* 100\.00 KiB of memory are free"):
        start(options(tiny_directory), CPU, Group(SOLE))


def test_no_weight_of_an_encoder_is_read_when_they_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenedEncoder, "load", lambda opened: pytest.fail("weights were read"))
    monkeypatch.setattr(ledger, "free_bytes", lambda device: 10 << 10)
    with pytest.raises(StartError, match=r"^the weights need .* 10\.00 KiB of memory are free"):
        start(options(write_encoder(tmp_path)), CPU, Group(SOLE))


def test_two_workers_of_one_name_and_process_id_are_two(tiny_directory: Path) -> None:
    """As in containers."""
    told, group = options(tiny_directory), Group(SOLE)
    started = start(told, CPU, group)
    one, other = (hello(told, started, CPU, group) for _ in range(2))
    assert one.worker_id != other.worker_id
    assert one.replica_id != other.replica_id


def test_a_device_that_is_full_is_one_line(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(opened: OpenedModel) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the docs")

    monkeypatch.setattr(OpenedModel, "load", load)
    with pytest.raises(StartError, match=r"do not fit: CUDA out of memory.* 2 GiB\.$"):
        start(options(tiny_directory), CPU, Group(SOLE))


async def test_a_size_that_is_none(tiny_directory: Path) -> None:
    assert await only_error("--model", tiny_directory, "--kv-cache-memory", "lots") == (
        "error: --kv-cache-memory is 'lots'; it must be a size like 2GiB or 512MiB"
    )


async def test_a_metrics_port_in_use(tiny_directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = await only_error("--model", tiny_directory, "--metrics-port", port)
    assert found == (
        f"error: cannot serve metrics on 127.0.0.1:{port}: Address already in use; "
        "--metrics-port names another port (0: any free one)"
    )


async def test_a_refused_hello(tiny_directory: Path, scheduler: FakeScheduler) -> None:
    scheduler.refusal = "this cell serves another model"
    found = await only_error("--model", tiny_directory, "--scheduler", scheduler.address)
    assert found.endswith("refused this worker: this cell serves another model")
