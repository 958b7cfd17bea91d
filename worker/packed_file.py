"""A model's packed matrices as a file: written one after another, mapped by whoever computes.

It is a safetensors file whose tensors begin at multiples of 64 bytes, for the kernels read whole
vectors; what fills the gaps are tensors, too, for the format has no gaps. What is not a tensor of
`PackedMatrix` is in the metadata, with the identity of what is packed.

Mapped pages are the page cache's: all processes that map the file share them. Nobody may write to
them, not even to a copy of their own.
"""

import json
import math
import mmap
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kernels.native.outline import without_data
from kernels.native.packing import PackedLinear, PackedMatrix
from kernels.quantized import Matrix
from worker.checkpoint import CheckpointError, TensorEntry, read_header

ALIGNMENT = 64
_PAGE = mmap.PAGESIZE
_BYTES_EACH = 768
"""Of the header, for a matrix: six tensors with names, types, shapes and places; its fields."""
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_FORMAT = "Quire's packed matrices, 1"


class PackedWriter:
    """Writes what is packed while it is packed, so that no more than one map is in memory."""

    def __init__(self, file: BinaryIO, max_matrices: int) -> None:
        """Leaves room for the header, which tells what nobody knows before the end.

        Args:
            file: empty.
            max_matrices: so many are written at most.
        """
        self._file = file
        self._header: dict[str, Any] = {}
        self._linears: list[list[dict[str, int]]] = []
        self._data_start = -(-(max_matrices + 1) * _BYTES_EACH // _PAGE) * _PAGE
        self._end = 0
        file.seek(self._data_start)

    def pack(self, matrices: Sequence[Matrix]) -> PackedLinear:
        """Packs and writes; what is returned has no data. Raises OSError."""
        linear = PackedLinear.of(matrices)
        for index, part in enumerate(linear.parts):
            stem = f"{len(self._linears)}.{index}"
            for name, tensor in _tensors(part).items():
                self._write(f"{stem}.{name}", tensor)
        self._linears.append([_fields(part) for part in linear.parts])
        return without_data(linear)

    def finish(self, identity: str) -> int:
        """Writes the header, and waits until all is on the disk; bytes of the file.

        Raises OSError.
        """
        said = {"format": _FORMAT, "identity": identity, "linears": json.dumps(self._linears)}
        header = json.dumps({"__metadata__": said} | self._header, separators=(",", ":")).encode()
        room = self._data_start - 8
        assert len(header) <= room, "more matrices were packed than were announced"
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + header.ljust(room))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._data_start + self._end

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        self._append(name, tensor)
        if gap := -self._end % ALIGNMENT:
            self._append(f"{name}.gap", torch.zeros(gap, dtype=torch.uint8))

    def _append(self, name: str, tensor: torch.Tensor) -> None:
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        start, self._end = self._end, self._end + len(data)
        self._file.write(data.data)
        self._header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self._end],
        }


@dataclass(frozen=True)
class PackedFile:
    """Mapped, for reading alone.

    Attributes:
        linears: as they were packed, one after another.
        num_bytes: of all that is mapped.
    """

    linears: tuple[PackedLinear, ...]
    num_bytes: int

    @classmethod
    def open(cls, path: Path, identity: str) -> "PackedFile":
        """Maps a file. Raises OSError, and CheckpointError for one that is damaged or another's."""
        entries, said = read_header(path)
        if said.get("format") != _FORMAT or said.get("identity") != identity:
            raise CheckpointError(f"{path.name} holds something else")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_WILLNEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has no word for what must not be written
            data = torch.frombuffer(mapped, dtype=torch.uint8)
        try:
            linears = json.loads(said["linears"])
            return cls(tuple(_linear(data, entries, *each) for each in enumerate(linears)), size)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path.name} has a damaged header: {error!r}") from error


class PackedReader:
    """Gives the maps of a file in the order in which they were packed."""

    def __init__(self, file: PackedFile) -> None:
        self._linears = iter(file.linears)

    def pack(self, matrices: Sequence[Matrix]) -> PackedLinear:
        """What these matrices, which have no data, were packed to.

        Raises CheckpointError if it is something else.
        """
        linear = next(self._linears, PackedLinear(()))
        rows = sum(part.shape[0] for part in linear.parts)
        columns = {part.shape[1] for part in linear.parts}
        asked = sum(matrix.shape[0] for matrix in matrices), matrices[0].shape[1]
        if (rows, columns) != (asked[0], {asked[1]}):
            raise CheckpointError(f"the packed matrices do not have one of {asked}")
        return linear


def _tensors(part: PackedMatrix) -> dict[str, torch.Tensor]:
    """Those that there are, by name."""
    found = {"values": part.values, "scales": part.scales, "offsets": part.offsets}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _fields(part: PackedMatrix) -> dict[str, int]:
    """All else."""
    rows, columns = part.shape
    return {"rows": rows, "columns": columns, "kind": part.kind, "group_size": part.group_size}


def _linear(
    data: torch.Tensor,
    entries: Mapping[str, TensorEntry],
    index: int,
    parts: Sequence[Mapping[str, int]],
) -> PackedLinear:
    def tensor(name: str) -> torch.Tensor:
        entry = entries[name]
        if entry.start % ALIGNMENT:
            raise ValueError(f"{name} begins at byte {entry.start}")
        dtype = _TYPES[entry.dtype]
        stop = entry.start + dtype.itemsize * math.prod(entry.shape)
        return data[entry.start : stop].view(dtype).view(entry.shape)

    def matrix(stem: str, fields: Mapping[str, int]) -> PackedMatrix:
        return PackedMatrix(
            (fields["rows"], fields["columns"]),
            fields["kind"],
            tensor(f"{stem}.values"),
            fields["group_size"],
            *(
                tensor(f"{stem}.{name}") if f"{stem}.{name}" in entries else None
                for name in ("scales", "offsets")
            ),
        )

    return PackedLinear(tuple(matrix(f"{index}.{at}", each) for at, each in enumerate(parts)))
