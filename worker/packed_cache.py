"""Packed matrices outlive the worker that packed them, and all workers of a model share them.

    PACKED/NAME-PATH/IDENTITY.safetensors    what is mapped; appears whole or not at all
    PACKED/NAME-PATH/IDENTITY.partial        what is being written
    PACKED/NAME-PATH/lock                    held by who writes

The identity covers all that decides the bytes: the checkpoint's files, what was asked for, the
layout. Whoever finds no such file writes it while it packs, and maps it then; others wait for that.
Where it cannot be written the worker packs into its own memory.

A file counts as used when it is mapped. Who writes one deletes others: of the same model, all but
the two used last, so that with the new one three are left; of any model, those that nobody has used
for a month. Mapped pages stay.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kernels.native.packing import LAYOUT
from worker.checkpoint import CheckpointError
from worker.loading_progress import unless_quick
from worker.packed_file import PackedFile, PackedWriter

_KEPT_OF_A_MODEL = 3
_KEPT_DAYS = 30
_LEAST_BYTES = 16 << 20

log = logging.getLogger(__name__)

Write = Callable[[PackedWriter], object]
"""Packs all that there is, through the writer's `pack`."""


@dataclass(frozen=True)
class Packing:
    """What is packed.

    Attributes:
        model: the directory.
        identity: of the packed bytes.
        num_bytes: they take at most.
        num_matrices: so many there are at most.
    """

    model: Path
    identity: str
    num_bytes: int
    num_matrices: int


def packed_identity(model: Path, revision: str, quantization: str) -> str:
    """Of what is packed of a model directory.

    Size and time tell of what a revision, which reads samples, may not see.

    Args:
        model: the directory.
        revision: of its configuration and weights.
        quantization: what was asked for.

    Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(LAYOUT), sys.byteorder, quantization, revision):
        digest.update(f"{part}\0".encode())
    for file in sorted(model.glob("*.safetensors")):
        found = file.stat()
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class PackedCache:
    """A folder of packed matrices.

    Attributes:
        home: the folder.
        least_bytes: of a model for which there is a file; others are packed in no time.
    """

    home: Path
    least_bytes: int = _LEAST_BYTES

    def mapped(self, packing: Packing, write: Write) -> PackedFile | None:
        """The file, written first if there is none; None if there can be none.

        Args:
            packing: what is packed.
            write: packs it, if it has to be.

        Raises what `write` raises, but for OSError.
        """
        if packing.num_bytes < self.least_bytes:
            return None
        resolved = packing.model.resolve()
        place = hashlib.blake2b(os.fsencode(resolved), digest_size=4).hexdigest()
        path = self.home / f"{resolved.name}-{place}" / f"{packing.identity}.safetensors"
        try:
            found = _find(path, packing)
            if found is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with _alone(path.parent / "lock"):
                    found = _find(path, packing) or _make(path, packing, write)
                    self._prune(path)
        except OSError as error:
            why = error.strerror or str(error)
            log.info("packed matrices stay in this worker's memory: %s: %s", path.parent, why)
            return None
        return found

    def _prune(self, path: Path) -> None:
        """Deletes what nobody is going to use, `path` never."""
        month_ago = time.time() - _KEPT_DAYS * 24 * 3600
        with contextlib.suppress(OSError):
            used = {file: file.stat().st_mtime for file in self.home.glob("*/*.safetensors")}
            used.pop(path, None)
            siblings = sorted(
                (file for file in used if file.parent == path.parent),
                key=used.__getitem__,
                reverse=True,
            )
            outdated = {file for file, when in used.items() if when < month_ago}
            for file in outdated.union(siblings[_KEPT_OF_A_MODEL - 1 :]):
                log.info("deleting %s, packed matrices that nobody has used lately", file)
                file.unlink(missing_ok=True)


def _find(path: Path, packing: Packing) -> PackedFile | None:
    """None if there is no such file, or none that is good. Raises OSError."""
    try:
        found = PackedFile.open(path, packing.identity)
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        log.warning("packed matrices are packed anew: %s: %s", path.parent, error)
        return None
    with contextlib.suppress(OSError):  # of somebody else, or of a disk that is only read
        os.utime(path)
    log.info("packed matrices are mapped, %.0f MB: %s", found.num_bytes / 1e6, path)
    return found


def _make(path: Path, packing: Packing, write: Write) -> PackedFile:
    """Raises OSError, and what `write` raises; nothing is left behind then."""
    for abandoned in path.parent.glob("*.partial"):
        abandoned.unlink(missing_ok=True)
    free = shutil.disk_usage(path.parent).free
    if packing.num_bytes > free // 2:
        raise OSError(
            f"they take up to {packing.num_bytes / 1e6:.0f} MB, "
            f"and more than half of the {free / 1e6:.0f} MB that are free"
        )
    log.info("packed matrices are written, to be shared (--packed-cache off: not): %s", path)
    start = time.perf_counter()
    partial = path.with_suffix(".partial")
    try:
        with partial.open("xb") as file:
            writer = PackedWriter(file, packing.num_matrices)
            write(writer)
            num_bytes = writer.finish(packing.identity)
        made = PackedFile.open(partial, packing.identity)
        partial.rename(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    log.info("written in %.1f s, %.0f MB", time.perf_counter() - start, num_bytes / 1e6)
    return made


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits until nobody else writes. Raises OSError."""
    with lock.open("w") as file:
        with unless_quick("another worker packs this model; waiting for it"):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
