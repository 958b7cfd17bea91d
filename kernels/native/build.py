"""Compiling the kernels for this processor.

A build belongs to its sources and options. It is looked for in the package, where an installation
may have put it (`python -m kernels.native`), then in the user's cache, and is else made there.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
IN_PACKAGE = HERE / "lib"
_CPUINFO = Path("/proc/cpuinfo")
_OPTIONS = (
    "-std=c++20",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-pthread",
    # Vectors wider than a register go between functions in memory; all are of one build.
    "-Wno-psabi",
)


class NativeUnavailableError(Exception):
    """The kernels cannot be had on this machine; the message is the reason, one line."""


@dataclass(frozen=True)
class Instructions:
    """What a build may use of a processor.

    Attributes:
        name: as `--cpu-isa` has it.
        flags: as the kernel of the system calls what the processor must have.
        options: for the compiler.
    """

    name: str
    flags: frozenset[str]
    options: tuple[str, ...]


_V2 = frozenset({"sse4_2", "popcnt"})
_V3 = _V2 | {"avx2", "bmi2", "f16c", "fma"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_X86 = (
    Instructions("avx512vnni", _V4 | {"avx512_vnni"}, ("-march=x86-64-v4", "-mavx512vnni")),
    Instructions("avx512", _V4, ("-march=x86-64-v4",)),
    Instructions("avx2", _V3, ("-march=x86-64-v3",)),
    Instructions("portable", _V2, ("-march=x86-64-v2",)),
)
_ARM = (
    Instructions("neon", frozenset({"asimd"}), ("-march=armv8.2-a+fp16+dotprod",)),
    Instructions("portable", frozenset(), ("-march=armv8-a",)),
)


def of_this_kind() -> tuple[Instructions, ...]:
    """What processors of this kind may have, the fastest first."""
    known = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}
    return known.get(platform.machine(), ())


def usable() -> tuple[Instructions, ...]:
    """What this processor has, the fastest first."""
    flags = _processor_flags()
    return tuple(each for each in of_this_kind() if each.flags <= flags)


def choose(isa: str = "auto") -> Instructions:
    """The instructions of this name, or the fastest. Raises NativeUnavailableError."""
    found = usable()
    for instructions in found:
        if isa in ("auto", instructions.name):
            return instructions
    if not found:
        raise NativeUnavailableError(f"there are no kernels for {platform.machine()}")
    names = ", ".join(each.name for each in found)
    raise NativeUnavailableError(f"--cpu-isa is {isa}; this processor has {names}")


def built(instructions: Instructions) -> Path | None:
    """A build that is there already."""
    for home in (IN_PACKAGE, _cache()):
        if (file := home / _file_name(instructions)).exists():
            return file
    return None


def build(instructions: Instructions, home: Path | None = None) -> Path:
    """Compiles; the file. Whoever asks while another process compiles waits for it.

    Args:
        instructions: what it may use.
        home: directory; None for the user's cache.

    Raises NativeUnavailableError.
    """
    home = home or _cache()
    target = home / _file_name(instructions)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(instructions, target)
    except OSError as error:
        raise NativeUnavailableError(f"the kernels cannot be compiled: {error}") from error
    return target


def _compile(instructions: Instructions, target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        raise NativeUnavailableError("there is no C++ compiler (c++, or what CXX names)")
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        made = Path(directory) / target.name
        options = (*_OPTIONS, *instructions.options)
        command = [compiler, *options, str(HERE / "quire_cpu.cpp"), "-o", str(made)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "error" in line]
            reason = errors[0] if errors else f"it ended with {run.returncode}"
            raise NativeUnavailableError(f"{compiler} does not compile the kernels: {reason}")
        made.rename(target)


def _file_name(instructions: Instructions) -> str:
    sources = sorted((*HERE.glob("*.h"), *HERE.glob("*.cpp")))
    digest = hashlib.blake2b(digest_size=8)
    for part in (*_OPTIONS, *instructions.options, *(path.read_text() for path in sources)):
        digest.update(part.encode())
    return f"{instructions.name}-{digest.hexdigest()}.so"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "quire" / "kernels"


def _processor_flags() -> frozenset[str]:
    """Of the first processor; what Linux lists as "flags" on x86 and "Features" on Arm."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
