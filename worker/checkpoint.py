"""A model directory's safetensors files: headers checked in full before any weight is read.

A file is 8 bytes (little-endian header length), a JSON header (name: dtype, shape, byte range) and
the data. A truncated or damaged file shows when the ranges do not fill the file exactly.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kernels.quantized import QuantizedMatrix

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
_ITEM_BYTES |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_FLOATS = ("F64", "F32", "F16", "BF16")
CODES, SCALE, OFFSET = ".codes", ".scale", ".offset"
"""Ends of the names of what a matrix in codes consists of (`kernels.quantized`)."""
_CODE_TYPES = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "F16": torch.float16,
    "F32": torch.float32,
}
_MAX_HEADER_BYTES = 100_000_000
_SAMPLES_PER_FILE, _SAMPLE_BYTES = 64, 4096


class CheckpointError(ValueError):
    """A weight file is missing, damaged or does not fit the model; the message names it."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is.

    Attributes:
        file: the safetensors file.
        dtype: safetensors' name, for example "BF16".
        shape: dimensions.
        start: byte of the file at which it begins; of a matrix in codes, where those do.
        codes: what a matrix in codes consists of: the ends of their names, and their entries.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    codes: Mapping[str, "TensorEntry"] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model directory.

    Attributes:
        files: the safetensors files, sorted.
        entries: by tensor name.
        prefix: what each name begins with here, and not in the files.
    """

    files: tuple[Path, ...]
    entries: Mapping[str, TensorEntry]
    prefix: str = ""

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Finds the files (sharded by an index, or one) and checks every header.

        Raises:
            CheckpointError: no file, a file that is truncated or damaged, an index naming
                what is not there.
        """
        files, promised = _find_files(directory)
        entries: dict[str, TensorEntry] = {}
        for file in files:
            for name, entry in read_header(file)[0].items():
                if name in entries:
                    raise CheckpointError(
                        f"tensor {name} is in both {entries[name].file.name} and {file.name}"
                    )
                entries[name] = entry
        absent = sorted(set(promised) - set(entries))
        if absent:
            raise CheckpointError(f"the index promises tensors that no file has: {_few(absent)}")
        return cls(files, _with_matrices(entries))

    def under(self, prefix: str) -> "Checkpoint":
        """The same tensors, their names after a prefix."""
        entries = {prefix + name: entry for name, entry in self.entries.items()}
        return Checkpoint(self.files, entries, prefix + self.prefix)

    def check_shapes(self, expected: Mapping[str, tuple[int, ...]], ignored: set[str]) -> None:
        """Holds the tensors against what the model needs.

        Args:
            expected: shape by name.
            ignored: names that may be present without being used.

        Raises:
            CheckpointError: a tensor is missing, unknown, misshapen or not floating point.
        """
        missing = sorted(set(expected) - set(self.entries))
        if missing:
            are = "tensor is" if len(missing) == 1 else "tensors are"
            raise CheckpointError(f"{len(missing)} {are} missing: {_few(missing)}")
        unknown = sorted(set(self.entries) - set(expected) - ignored)
        if unknown:
            have = "tensor has" if len(unknown) == 1 else "tensors have"
            raise CheckpointError(
                f"{len(unknown)} {have} no place in this architecture: {_few(unknown)}"
            )
        for name, shape in expected.items():
            entry = self.entries[name]
            if entry.shape != shape:
                raise CheckpointError(
                    f"tensor {name} has shape {list(entry.shape)}; "
                    f"the config asks for {list(shape)}"
                )
            if not entry.codes and entry.dtype not in _FLOATS:
                raise CheckpointError(
                    f"tensor {name} has type {entry.dtype}; only {', '.join(_FLOATS)} are supported"
                )

    def read(
        self, name: str, part: tuple[slice, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """One tensor, or the part of it with one slice per axis, converted and placed.

        Of a part only its own bytes are read from the file, unless they are codes.
        """
        matrix = self.read_codes(name)
        if matrix is not None:
            return matrix.part(part).to(device=device, dtype=dtype)
        stored_as = name.removeprefix(self.prefix)
        with safe_open(self.entries[name].file, framework="pt") as file:
            tensor: torch.Tensor = (
                file.get_slice(stored_as)[part] if part else file.get_tensor(stored_as)
            )
        return tensor.to(device=device, dtype=dtype, copy=True)

    def read_codes(self, name: str) -> QuantizedMatrix | None:
        """A matrix as it is kept, on the host; None if that is in floats."""
        entry = self.entries[name]
        if not entry.codes:
            return None
        stored_as, parts = name.removeprefix(self.prefix), {}
        for end, part in entry.codes.items():
            with safe_open(part.file, framework="pt") as file:
                parts[end] = file.get_tensor(stored_as + end)
        return QuantizedMatrix(parts[CODES], parts[SCALE], parts.get(OFFSET))

    def outline(self, name: str) -> QuantizedMatrix | None:
        """What `read_codes` gives, with its sizes alone, and no memory."""
        parts = {
            end: torch.empty(part.shape, dtype=_CODE_TYPES[part.dtype], device="meta")
            for end, part in self.entries[name].codes.items()
        }
        if not parts:
            return None
        return QuantizedMatrix(parts[CODES], parts[SCALE], parts.get(OFFSET))

    def update_digest(self, digest: "hashlib.blake2b") -> None:
        """Feeds names, sizes, headers and evenly spaced samples of the data: fine-tunes of one
        base differ in no header, and reading all bytes would take longer than loading."""
        for path in self.files:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(8 + int.from_bytes(file.read(8), "little")))
                for index in range(_SAMPLES_PER_FILE):
                    file.seek(size * index // _SAMPLES_PER_FILE)
                    digest.update(file.read(_SAMPLE_BYTES))


def _find_files(directory: Path) -> tuple[tuple[Path, ...], Mapping[str, str]]:
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise CheckpointError(
                "no model.safetensors and no model.safetensors.index.json; "
                "only safetensors weights are loaded"
            )
        return (single,), {}
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = tuple(sorted({directory / name for name in weight_map.values()}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index.name} is not a valid index: {error!r}") from error
    for file in files:
        if file.parent != directory or not file.is_file():
            raise CheckpointError(f"{index.name} names {file.name}, which is not there")
    return files, weight_map


def read_header(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Entries by name, and what a safetensors file says of itself.

    Raises CheckpointError for what is truncated or damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{file.name} is truncated or damaged: "
                f"it has {size} bytes and claims a header of {length}"
            )
        text = stream.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", None)
        entries, end = _parse_entries(file, header, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file.name} has a damaged header: {error!r}") from error
    if end != size:
        raise CheckpointError(
            f"{file.name} is truncated or damaged: "
            f"it has {size} bytes and its header describes {end}"
        )
    return entries, metadata if isinstance(metadata, dict) else {}


def _parse_entries(
    file: Path, header: Mapping[str, Any], data_start: int
) -> tuple[dict[str, TensorEntry], int]:
    """Entries by name, and the end of the file; ranges must join without gap or overlap."""
    entries: dict[str, TensorEntry] = {}
    end = 0
    for name, fields in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        start, stop = fields["data_offsets"]
        if not all(type(size) is int and size >= 0 for size in (*shape, start, stop)):
            raise ValueError(f"shape and byte range of {name} must be whole numbers, at least 0")
        if start != end or stop - start != math.prod(shape) * _ITEM_BYTES[dtype]:
            raise ValueError(f"the byte range of {name} is wrong")
        entries[name], end = TensorEntry(file, dtype, shape, data_start + start), stop
    return entries, data_start + end


def _with_matrices(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Entries of which those of a matrix in codes are one. Raises CheckpointError."""
    matrices = {
        name.removesuffix(CODES): {
            end: entries[name.removesuffix(CODES) + end]
            for end in (CODES, SCALE, OFFSET)
            if name.removesuffix(CODES) + end in entries
        }
        for name in entries
        if name.endswith(CODES)
    }
    for name in matrices.keys() & entries.keys():
        raise CheckpointError(f"tensor {name} is there twice: in floats and in codes")
    parts = {name + end for name, ends in matrices.items() for end in ends}
    whole = {name: _matrix_of(name, ends) for name, ends in matrices.items()}
    return {name: entry for name, entry in entries.items() if name not in parts} | whole


def _matrix_of(name: str, ends: Mapping[str, TensorEntry]) -> TensorEntry:
    """Raises CheckpointError unless codes, scales and offsets fit together."""
    codes, scale = ends[CODES], ends.get(SCALE)
    if scale is None:
        raise CheckpointError(f"tensor {name}{CODES} has no {name}{SCALE}")
    if codes.dtype not in ("I8", "U8") or len(codes.shape) != 2:
        raise CheckpointError(f"tensor {name}{CODES} is not a matrix of codes")
    rows, columns = codes.shape[0], codes.shape[1] * (2 if codes.dtype == "U8" else 1)
    groups = scale.shape[-1] if scale.shape else 0
    for end, entry in ends.items():
        if end == CODES:
            continue
        if entry.dtype not in ("F16", "F32") or entry.shape != (rows, groups):
            raise CheckpointError(f"tensor {name}{end} does not fit the codes, {rows} rows")
    if not groups or columns % groups or (columns // groups) % 2:
        raise CheckpointError(
            f"tensor {name}{SCALE} has {groups} groups; {columns} columns do not divide into them"
        )
    return TensorEntry(codes.file, codes.dtype, (rows, columns), codes.start, ends)


def _few(names: list[str]) -> str:
    """Up to three names, for one readable line."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
