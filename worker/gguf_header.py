"""What a GGUF file says of itself, checked before anything is made of it.

    magic, version, counts ── metadata: name, type, value ... ── tensors: name, shape, type, offset
    ... ── padding ── data

Every length and offset in it is somebody's claim. Here each is compared with what the file still
has, before anything of that size is read or made: so a damaged or malicious file costs no more
memory than it has bytes, and its end is a message.
"""

import math
import mmap
import struct
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

MAX_METADATA = 65_536
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 65_535
MAX_ARRAY_LEN = 4_000_000
MAX_DIMENSIONS = 4
MAX_NESTING = 4
MAX_ALIGNMENT = 1 << 20

_SIZES = {
    **dict.fromkeys((GGUFValueType.UINT8, GGUFValueType.INT8, GGUFValueType.BOOL), 1),
    **dict.fromkeys((GGUFValueType.UINT16, GGUFValueType.INT16), 2),
    **dict.fromkeys((GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32), 4),
    **dict.fromkeys((GGUFValueType.UINT64, GGUFValueType.INT64, GGUFValueType.FLOAT64), 8),
}
_DEFAULT_ALIGNMENT = 32


class HeaderError(Exception):
    """The header cannot be true; the message names what, its limit and its value."""


def check_header(path: Path) -> None:
    """Raises HeaderError. The file begins with GGUF's magic."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Header(data).check()


class _Header:
    """A place in the file, which only goes on."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._at = 4
        self._alignment = _DEFAULT_ALIGNMENT

    def check(self) -> None:
        version = self._number("<I", "the version")
        if version not in (2, 3):
            raise HeaderError(f"the version is {version}; it must be 2 or 3")
        num_tensors = self._number("<Q", "the number of tensors", MAX_TENSORS)
        num_metadata = self._number("<Q", "the number of metadata", MAX_METADATA)
        names: set[bytes] = set()
        for _ in range(num_metadata):
            name = self._name("of metadata", names)
            self._value(name, self._number("<I", f"the type of {_shown(name)}"), 0)
        extents: dict[bytes, tuple[int, int]] = {}
        tensors: set[bytes] = set()
        for _ in range(num_tensors):
            name = self._name("of a tensor", tensors)
            extents[name] = self._tensor(name)
        start = self._at + -self._at % self._alignment
        for name, (offset, num_bytes) in extents.items():
            if offset % self._alignment:
                raise HeaderError(
                    f"tensor {_shown(name)} begins at {offset}, no multiple of {self._alignment}"
                )
            if start + offset + num_bytes > self._size:
                raise HeaderError(
                    f"tensor {_shown(name)} ends at byte {start + offset + num_bytes}; the file "
                    f"has {self._size}"
                )

    def _number(self, form: str, what: str, most: int | None = None) -> int:
        value: int
        (value,) = struct.unpack(form, self._take(struct.calcsize(form), what))
        if most is not None and value > most:
            raise HeaderError(f"{what} is {value}; it must be at most {most}")
        return value

    def _take(self, num_bytes: int, what: str) -> bytes:
        self._check_left(num_bytes, what)
        begin, self._at = self._at, self._at + num_bytes
        return self._data[begin : self._at]

    def _skip(self, num_bytes: int, what: str) -> None:
        self._check_left(num_bytes, what)
        self._at += num_bytes

    def _check_left(self, num_bytes: int, what: str) -> None:
        left = self._size - self._at
        if num_bytes > left:
            raise HeaderError(f"{what} takes {num_bytes} bytes; the file has {left} more")

    def _name(self, what: str, known: set[bytes]) -> bytes:
        length = self._number("<Q", f"the length of a name {what}", MAX_NAME_BYTES)
        name = self._take(length, f"a name {what}")
        if name in known:
            raise HeaderError(f"two names {what} are {_shown(name)}")
        known.add(name)
        return name

    def _value(self, name: bytes, code: int, depth: int) -> None:
        what = f"{_shown(name)}"
        if code == GGUFValueType.STRING:
            self._skip(self._number("<Q", f"the length of {what}"), what)
        elif code == GGUFValueType.ARRAY:
            self._array(name, depth)
        elif code in _SIZES:
            if name == b"general.alignment":
                self._align(code)
            else:
                self._skip(_SIZES[GGUFValueType(code)], what)
        else:
            raise HeaderError(f"the type of {what} is {code}, which GGUF does not have")

    def _array(self, name: bytes, depth: int) -> None:
        what = _shown(name)
        if depth == MAX_NESTING:
            raise HeaderError(f"{what} is nested more than {MAX_NESTING} deep")
        code = self._number("<I", f"the type of {what}")
        length = self._number("<Q", f"the length of {what}", MAX_ARRAY_LEN)
        if code in _SIZES:
            self._skip(length * _SIZES[GGUFValueType(code)], what)
            return
        for _ in range(length):
            self._value(name, code, depth + 1)

    def _align(self, code: int) -> None:
        if code != GGUFValueType.UINT32:
            raise HeaderError(f"the type of general.alignment is {code}; it must be 4 (uint32)")
        value = self._number("<I", "general.alignment")
        if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise HeaderError(
                f"general.alignment is {value}; it must be a power of two, 1 to {MAX_ALIGNMENT}"
            )
        self._alignment = value

    def _tensor(self, name: bytes) -> tuple[int, int]:
        """Where it begins in the data, and its bytes."""
        what = f"tensor {_shown(name)}"
        num_dimensions = self._number("<I", f"the dimensions of {what}", MAX_DIMENSIONS)
        shape = [self._number("<Q", f"a size of {what}") for _ in range(num_dimensions)]
        code = self._number("<I", f"the type of {what}")
        offset = self._number("<Q", f"the offset of {what}")
        if not shape or not all(shape):
            raise HeaderError(f"{what} has the shape {shape}; every size must be at least 1")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(code)]
        except (ValueError, KeyError):
            raise HeaderError(f"the type of {what} is {code}, which is not known") from None
        if shape[0] % block:
            raise HeaderError(f"{what} has rows of {shape[0]}, no multiple of its blocks' {block}")
        return offset, math.prod(shape) // block * block_bytes


def _shown(name: bytes) -> str:
    return repr(name[:64].decode(errors="replace"))
