"""Damaged and malicious GGUF files end with a message, and cost no more than they weigh."""

import random
import re
import resource
import struct
from pathlib import Path

import pytest

from tests.worker.test_convert import TinyGGUF, silent
from worker.convert import convert
from worker.gguf_header import HeaderError, check_header
from worker.gguf_model import ConvertError

LIMIT_BYTES = 6 << 30
"""Address space, of which torch takes most: what a lie about lengths would exceed at once."""


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def written(path: Path, body: bytes, tensors: int = 0, metadata: int = 0) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, metadata) + body)
    return path


def tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


HUGE = (1 << 64) - 1


@pytest.mark.parametrize(
    ("counts", "body", "message"),
    [
        ((HUGE, 0), b"", "the number of tensors is 18446744073709551615; it must be at most 65536"),
        ((0, HUGE), b"", "the number of metadata is 18446744073709551615; it must be at most"),
        ((0, 1), struct.pack("<Q", HUGE), "the length of a name of metadata is 184467"),
        (
            (0, 1),
            struct.pack("<Q", 9) + b"short",
            "a name of metadata takes 9 bytes; the file has 5",
        ),
        ((0, 1), text(b"a") + struct.pack("<I", 99), "the type of 'a' is 99, which GGUF does not"),
        (
            (0, 1),
            text(b"a") + struct.pack("<IQ", 8, 1 << 60),
            "'a' takes 1152921504606846976 bytes",
        ),
        (
            (0, 1),
            text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 40),
            "the length of 'a' is 1099511627776",
        ),
        (
            (0, 1),
            text(b"a") + struct.pack("<IIQ", 9, 8, 4_000_000),
            "the length of 'a' takes 8 bytes",
        ),
        (
            (0, 1),
            text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
            "'a' is nested more than 4 deep",
        ),
        ((0, 2), (text(b"a") + struct.pack("<IB", 0, 1)) * 2, "two names of metadata are 'a'"),
        (
            (0, 1),
            text(b"general.alignment") + struct.pack("<II", 4, 24),
            "general.alignment is 24; it must be a power of two, 1 to 1048576",
        ),
        ((1, 0), tensor((1,) * 5), "the dimensions of tensor 't' is 5; it must be at most 4"),
        ((1, 0), tensor((4, 0)), "tensor 't' has the shape [4, 0]; every size must be at least 1"),
        ((1, 0), tensor((4,), kind=77), "the type of tensor 't' is 77, which is not known"),
        ((1, 0), tensor((33,), kind=8), "tensor 't' has rows of 33, no multiple of its blocks' 32"),
        ((1, 0), tensor((4,), offset=8), "tensor 't' begins at 8, no multiple of 32"),
        (
            (1, 0),
            tensor((1 << 40, 1 << 40)),
            f"ends at byte {(1 << 82) + 96}; the file has",
        ),
        (
            (1, 0),
            tensor((4,), offset=1 << 62),
            f"tensor 't' ends at byte {(1 << 62) + 80}; the file has 57",
        ),
        ((2, 0), tensor((4,)) * 2, "two names of a tensor are 't'"),
    ],
)
def test_a_claim_is_checked_before_it_is_believed(
    tmp_path: Path, counts: tuple[int, int], body: bytes, message: str
) -> None:
    path = written(tmp_path / "lie.gguf", body, *counts)
    with pytest.raises(HeaderError) as error:
        check_header(path)
    assert message in str(error.value)


def test_a_version_of_another_byte_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "swapped.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(HeaderError, match="the version is 50331648; it must be 2 or 3"):
        check_header(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return TinyGGUF().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def outcome(data: bytes, directory: Path) -> str | None:
    """The message that a file ends with; None if it was converted. Anything else is an error."""
    source = directory / "damaged.gguf"
    source.write_bytes(data)
    destination = directory / "converted"
    said: str | None = None
    try:
        convert(source, destination, silent)
    except ConvertError as error:
        said = str(error)
    if said is not None:
        assert not destination.exists()
        assert "\n" not in said
        return said
    for path in destination.iterdir():
        path.unlink()
    destination.rmdir()
    return None


def test_a_file_that_ends_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    dice = random.Random(1)
    ends = [4, 5, 23, 24, 25, *(dice.randrange(4, len(whole) - 64) for _ in range(100))]
    for end in ends:
        said = outcome(whole[:end], tmp_path)
        assert said is not None, end
        assert re.search(r"truncated or damaged \(\d+ bytes\)", said), (end, said)


def test_bytes_that_are_others_are_refused_or_harmless(whole: bytes, tmp_path: Path) -> None:
    """Mostly of the header, which is where claims are; a traceback or gigabytes would fail here."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + LIMIT_BYTES, before[1]))
    try:
        dice, said = random.Random(2), set()
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(dice.choice((1, 1, 2, 8))):
                data[dice.randrange(4, 6000)] = dice.choice(
                    (0, 1, 9, 127, 255, dice.randrange(256))
                )
            said.add(outcome(bytes(data), tmp_path) is None)
        assert said == {True, False}  # some went through, some did not
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
