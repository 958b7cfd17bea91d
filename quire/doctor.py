"""What this machine has, and what a stack would miss: the checks behind `quire doctor`.

Nothing heavy is imported here: torch is asked in a process of its own.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from protos.folders import cache_dir
from quire.errors import ConfigurationError
from quire.models import ALIASES, made
from quire.paths import runtime_dir

_PACKAGES = {
    "router": ("starlette", "uvicorn", "httptools", "pydantic", "jinja2", "tokenizers"),
    "scheduler": ("grpcio", "protobuf", "numpy", "uvloop", "prometheus-client"),
    "worker": ("torch", "transformers", "safetensors", "gguf", "numba", "tokenizers"),
}
_TELLING_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon")
_MIN_MEMORY_BYTES = 2 << 30
_MIN_DISK_BYTES = 2 << 30

_ASK_TORCH = """
import json, torch
gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
print(json.dumps({
    "version": torch.__version__,
    "threads": torch.get_num_threads(),
    "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
}))
"""


class Verdict(StrEnum):
    """How a check ended."""

    GOOD = "good"
    NOTE = "note"
    """Works, but worth knowing."""
    BAD = "bad"
    """`quire serve` with its default flags cannot work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    subject: str
    verdict: Verdict
    detail: str


def examine(ports: tuple[int, ...]) -> Iterator[Finding]:
    """All checks, each as soon as it is done."""
    yield _python()
    for role, packages in _PACKAGES.items():
        yield _packages(role, packages)
    yield from _torch()
    yield _cpu()
    yield _memory()
    yield _shared_memory()
    yield from (_port(port) for port in ports)
    yield _cache()
    yield _runtime()
    yield from (_default_model(alias) for alias in ALIASES)


def _python() -> Finding:
    enough = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", Verdict.GOOD if enough else Verdict.BAD, detail)


def _packages(role: str, packages: tuple[str, ...]) -> Finding:
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        cure = f"pip install 'quire[{role}]'"
        return Finding(f"{role} packages", Verdict.BAD, f"missing {', '.join(missing)}: {cure}")
    return Finding(f"{role} packages", Verdict.GOOD, ", ".join(found))


def _torch() -> Iterator[Finding]:
    finished = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("torch", Verdict.BAD, reason)
        return
    told = json.loads(finished.stdout)
    yield Finding("torch", Verdict.GOOD, f"{told['version']}, {told['threads']} threads by default")
    if told["gpus"]:
        yield Finding("cuda", Verdict.GOOD, ", ".join(told["gpus"]))
    else:
        yield Finding("cuda", Verdict.NOTE, "no GPU in sight: workers compute on the CPU")


def _cpu() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return Finding("cpu", Verdict.NOTE, f"{cores} cores, {platform.machine()}")
    features = [feature for feature in _TELLING_FEATURES if feature in words]
    detail = f"{cores} cores, {platform.machine()}, {' '.join(features) or 'no vector extensions'}"
    return Finding("cpu", Verdict.GOOD if features else Verdict.NOTE, detail)


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return Finding("memory", Verdict.NOTE, "cannot be told on this system")
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free = sizes["MemAvailable"]
    detail = f"{_gib(free)} of {_gib(sizes['MemTotal'])} available"
    enough = free >= _MIN_MEMORY_BYTES
    return Finding("memory", Verdict.GOOD if enough else Verdict.BAD, detail)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Finding("/dev/shm", Verdict.NOTE, "absent: ranks of one replica cannot share memory")
    enough = free >= 64 << 20
    return Finding("/dev/shm", Verdict.GOOD if enough else Verdict.NOTE, f"{_gib(free)} free")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            return Finding(f"port {port}", Verdict.NOTE, f"{reason}: choose another")
    return Finding(f"port {port}", Verdict.GOOD, "free")


def _cache() -> Finding:
    path = cache_dir()
    try:
        path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding("cache", Verdict.BAD, f"{path}: {error.strerror}: set QUIRE_CACHE")
    if not os.access(path, os.W_OK):
        return Finding("cache", Verdict.BAD, f"{path} is not writable: set QUIRE_CACHE")
    verdict = Verdict.GOOD if free >= _MIN_DISK_BYTES else Verdict.NOTE
    return Finding("cache", verdict, f"{path}, {_gib(free)} free")


def _runtime() -> Finding:
    try:
        return Finding("runtime directory", Verdict.GOOD, str(runtime_dir()))
    except ConfigurationError as error:
        return Finding("runtime directory", Verdict.BAD, str(error))


def _default_model(alias: str) -> Finding:
    """What is made on first use is well, too."""
    there = made(alias)
    later = f"made on first use, from the package {ALIASES[alias].requirement}"
    return Finding(f"model {alias}", Verdict.GOOD, f"ready at {there}" if there else later)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"
