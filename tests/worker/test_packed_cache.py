"""Files of packed matrices: when one is used, when it is written, and when there is none."""

import hashlib
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kernels.native import packing
from kernels.native.packing import PackedLinear
from kernels.quantized import Matrix, quantize
from tests.worker.builders import write_tiny_llama
from tests.worker.coded import about_zero
from tests.worker.fake_scheduler import FakeScheduler
from tests.worker.models.test_packed import logits_of
from tests.worker.processes import running_worker
from tests.worker.test_start import options
from worker import packed_cache
from worker.backends import Wishes
from worker.loader import LoadedModel, load_model
from worker.packed_cache import PackedCache, Packing
from worker.packed_file import ALIGNMENT, PackedFile, PackedWriter
from worker.parallel import Group
from worker.place import SOLE
from worker.start import start

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "packed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "model")


def load(
    model: Path, home: Path, quantization: str = "auto", load_format: str = "auto"
) -> LoadedModel:
    return load_model(
        model,
        dtype="auto",
        device=CPU,
        load_format=load_format,
        wishes=Wishes("native", quantization=quantization),
        packed_cache=PackedCache(home, least_bytes=0),
    )


def files(home: Path, end: str = ".safetensors") -> list[Path]:
    return sorted(home.glob(f"*/*{end}"))


def test_what_is_mapped_cannot_be_written(model: Path, home: Path) -> None:
    loaded = load(model, home)
    (file,) = files(home)
    mappings = Path("/proc/self/maps").read_text().splitlines()
    ours = [line.split()[1] for line in mappings if line.endswith(str(file))]
    assert set(ours) == {"r--s"}
    assert loaded.mapped_bytes == file.stat().st_size


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def appended(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def garbled(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"data_offsets"', b'"data_offsetz"', 1))


def of_another(file: Path) -> None:
    identity = file.stem.encode()
    file.write_bytes(file.read_bytes().replace(identity, identity[::-1], 1))


def without_matrices(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'\\"rows\\"', b'\\"rowz\\"', 1))


def foreign(file: Path) -> None:
    safetensors.torch.save_file({"0.0.values": torch.zeros(4)}, file)


@pytest.mark.parametrize(
    "damage",
    [truncated, emptied, appended, garbled, of_another, without_matrices, foreign],
)
def test_a_bad_file_is_never_used(
    model: Path, home: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    expected = logits_of(load(model, home))
    (file,) = files(home)
    good = file.read_bytes()
    damage(file)
    assert file.read_bytes() != good
    with caplog.at_level(logging.INFO):
        assert torch.equal(logits_of(load(model, home)), expected)
    assert f"packed matrices are packed anew: {file.parent}: {file.name} " in caplog.text
    assert file.read_bytes() == good


@pytest.mark.parametrize("place", ["file/packed", "/sys/quire"])
def test_a_worker_without_a_cache_keeps_matrices_in_its_memory(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """Where nothing can be made, not even by root."""
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO):
        loaded = load(model, tmp_path / place)
    assert loaded.mapped_bytes == 0
    assert torch.equal(logits_of(loaded), logits_of(load(model, tmp_path / "packed")))
    said = [line for line in caplog.messages if line.startswith("packed matrices stay in this")]
    assert len(said) == 1
    assert place in said[0]


@pytest.fixture
def small_files(model: Path) -> Iterator[None]:
    """What is written once the model is there ends after some bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_gets_full(model: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        loaded = load(model, home)
    assert loaded.mapped_bytes == 0
    assert logits_of(loaded).isfinite().all()
    (folder,) = home.iterdir()
    assert caplog.messages[-3].startswith(f"packed matrices stay in this worker's memory: {folder}")
    assert [file.name for file in folder.iterdir()] == ["lock"]


def test_no_disk_is_filled_up(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PackedCache(home)
    with caplog.at_level(logging.INFO):
        assert cache.mapped(packing_of(num_bytes=1 << 60), write_none) is None
    assert "they take up to 1152921504607 MB, and more than half of the" in caplog.text


def test_who_has_less_than_is_worth_a_file(model: Path, home: Path) -> None:
    cache = PackedCache(home)
    loaded = load_model(
        model, dtype="auto", device=CPU, wishes=Wishes("native"), packed_cache=cache
    )
    assert loaded.mapped_bytes == 0
    load(model, home, load_format="dummy")
    assert not home.exists()


def test_each_quantization_has_a_file(model: Path, home: Path) -> None:
    wishes = ("auto", "int8", "int4")
    first = [logits_of(load(model, home, wish)) for wish in wishes]
    assert len(files(home)) == 3
    again = [logits_of(load(model, home, wish)) for wish in wishes]
    assert len(files(home)) == 3
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_a_checkpoint_that_changes_is_packed_anew(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = model / "model.safetensors"
    load(model, home)
    before, when = files(home), weights.stat()
    tensors = safetensors.torch.load_file(weights)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 1
    safetensors.torch.save_file(tensors, weights)
    os.utime(weights, ns=(when.st_atime_ns, when.st_mtime_ns))
    changed = logits_of(load(model, home))
    assert len(files(home)) == 2
    assert torch.equal(changed, logits_of(load(model, home.with_name("elsewhere"))))
    os.utime(weights, ns=(when.st_atime_ns, when.st_mtime_ns + 1))
    load(model, home)
    assert len(files(home)) == 3
    monkeypatch.setattr(packed_cache, "LAYOUT", packing.LAYOUT + 1)
    load(model, home)
    assert len(files(home)) == 3
    assert not set(before) & set(files(home))  # the oldest of four is deleted


def packing_of(name: str = "model", identity: str = "i", num_bytes: int = 1 << 30) -> Packing:
    return Packing(Path("/nowhere") / name, identity, num_bytes, num_matrices=4)


def write_one(writer: PackedWriter) -> None:
    writer.pack([torch.arange(64.0).view(2, 32)])


def write_none(writer: PackedWriter) -> None:
    pytest.fail("it need not, or must not, be written")


def test_what_nobody_uses_is_deleted(home: Path) -> None:
    """Of a model the three used last are kept; of all models those of the last month."""
    cache = PackedCache(home)
    now = time.time()
    for days, identity in ((3, "a"), (2, "b"), (1, "c")):
        assert cache.mapped(packing_of("one", identity), write_one)
        (file,) = home.glob(f"one-*/{identity}.safetensors")
        os.utime(file, (now, now - days * 24 * 3600))
    assert cache.mapped(packing_of("two", "old"), write_one)
    (old,) = home.glob("two-*/old.safetensors")
    os.utime(old, (now, now - 31 * 24 * 3600))
    mapped = cache.mapped(packing_of("one", "a"), write_none)  # used now, and so the newest
    assert mapped is not None
    (stale,) = {file.parent for file in files(home) if file.parent.name.startswith("one-")}
    (stale / "killed.partial").write_bytes(b"half")
    assert cache.mapped(packing_of("one", "d"), write_one)
    assert [file.name[0] for file in files(home)] == ["a", "c", "d"]
    assert not files(home, ".partial")
    assert cache.mapped(packing_of("one", "e"), write_one)
    assert cache.mapped(packing_of("one", "f"), write_one)
    assert [file.name[0] for file in files(home)] == ["d", "e", "f"]
    values = mapped.linears[0].parts[0].values  # its pages stay
    assert values.float().sum() == sum(range(64))


def test_two_writers_at_once(home: Path) -> None:
    """One writes; the other waits, and maps what it wrote."""
    cache, begun, may_end = PackedCache(home), threading.Event(), threading.Event()
    found: dict[str, PackedFile | None] = {}

    def write_slowly(writer: PackedWriter) -> None:
        begun.set()
        assert may_end.wait(60)
        write_one(writer)

    def start(name: str, write: Callable[[PackedWriter], None]) -> threading.Thread:
        def run() -> None:
            found[name] = cache.mapped(packing_of(), write)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    first = start("first", write_slowly)
    assert begun.wait(60)
    second = start("second", write_none)
    second.join(0.3)
    assert second.is_alive()
    assert not files(home)
    may_end.set()
    first.join(60)
    second.join(60)
    assert found["first"] is not None
    assert found["second"] is not None
    assert torch.equal(*(file.linears[0].parts[0].values for file in found.values() if file))


def test_matrices_of_all_kinds_come_back(home: Path) -> None:
    """Each tensor where the kernels can read whole vectors."""
    torch.manual_seed(0)
    floats = torch.randn(21, 96)
    maps: list[list[Matrix]] = [
        [floats],
        [floats.bfloat16(), floats.half()],
        [quantize(floats, 4, 32), quantize(floats, 8, 32), floats],
        [about_zero(floats[:16], 4)],  # its scales are no whole vectors
        [quantize(floats, 8, 96)],
    ]
    expected = [PackedLinear.of(matrices) for matrices in maps]

    def write(writer: PackedWriter) -> None:
        for matrices in maps:
            assert all(part.values.is_meta for part in writer.pack(matrices).parts)

    packing = replace(packing_of(), num_matrices=8)
    found = PackedCache(home).mapped(packing, write)
    assert found is not None
    assert len(found.linears) == len(expected)
    for linear, wanted in zip(found.linears, expected, strict=True):
        for part, like in zip(linear.parts, wanted.parts, strict=True):
            assert (part.shape, part.kind, part.group_size) == (
                like.shape,
                like.kind,
                like.group_size,
            )
            for tensor, same in (
                (part.values, like.values),
                (part.scales, like.scales),
                (part.offsets, like.offsets),
            ):
                assert (tensor is None) == (same is None)
                if tensor is not None and same is not None:
                    assert torch.equal(tensor, same)
                    assert tensor.data_ptr() % ALIGNMENT == 0
    (file,) = files(home)
    stored = safetensors.torch.load_file(file)
    assert len(stored["3.0.scales.gap"]) == 32
    assert torch.equal(stored["0.0.values"], expected[0].parts[0].values)


def test_a_worker_keeps_them_where_it_was_told(tmp_path: Path, home: Path) -> None:
    """Of a model that is worth it; and takes their pages for memory that is not free."""
    large = write_tiny_llama(tmp_path / "large", vocab_size=70_000)
    asked = replace(options(large), cpu_backend="native", packed_cache=home)
    first, again = (start(asked, CPU, Group(SOLE)).loaded for _ in range(2))
    (file,) = files(home)
    assert first.mapped_bytes == again.mapped_bytes == file.stat().st_size > 16 << 20


@pytest.mark.parametrize(("flags", "num_files"), [((), 1), (("--packed-cache", "off"), 0)])
async def test_the_flag(
    tmp_path: Path,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    num_files: int,
) -> None:
    """They are in the cache, beside models."""
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path / "cache"))
    large = write_tiny_llama(tmp_path / "large", vocab_size=70_000)
    async with running_worker("--model", large, "--scheduler", scheduler.address, *flags):
        await scheduler.attached()
    assert len(files(tmp_path / "cache" / "packed")) == num_files


_LAYOUTS = {1: "edd57dc3be15288d"}


def test_another_layout_has_another_number() -> None:
    """Files outlive the code that wrote them: what packs otherwise must not find them."""
    floats = ((torch.arange(24 * 64) * 7919 % 1009) / 61 - 8).view(24, 64)
    small = floats.bfloat16()
    digest = hashlib.blake2b(digest_size=8)
    coded = [quantize(floats, bits, size) for bits in (4, 8) for size in (16, 32, 64)]
    matrices: list[Matrix] = [floats, small, small.half(), *coded]
    for matrix in matrices:
        for part in PackedLinear.of([matrix]).parts:
            digest.update(f"{part.shape} {part.kind} {part.group_size}".encode())
            for tensor in (part.values, part.scales, part.offsets):
                if tensor is not None:
                    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    wanted = _LAYOUTS.get(packing.LAYOUT)
    assert digest.hexdigest() == wanted, "give LAYOUT another number, and note its digest here"
