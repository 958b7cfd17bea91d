"""What is compared, and the command that starts each, at an address of its own.

A mode is written "NAME=FLAGS". Its name begins with what matrices are read in (`PRECISIONS`), which
is what it may be compared with, and what its limit is computed from; more words may follow.
"""

import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
LOOPBACK = "127.0.0.1"
MAX_MODEL_LEN = 2048
QUIRE = "Quire"

_VERSION_OF = "from importlib.metadata import version; print(version({!r}))"
_SHIM = Path(__file__).with_name("openvino_server.py")


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to run a system.

    Attributes:
        name: begins with a precision.
        flags: added to its command.
    """

    name: str
    flags: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Mode":
        """Of "NAME=FLAGS". Raises typer.BadParameter."""
        name, equals, flags = text.partition("=")
        if not equals or name.partition(" ")[0] not in PRECISIONS:
            begins = ", ".join(PRECISIONS)
            raise typer.BadParameter(
                f"mode is {text!r}; it must be NAME=FLAGS, and NAME begin with one of {begins}"
            )
        return cls(name, tuple(shlex.split(flags)))


@dataclass(frozen=True, slots=True)
class Engine:
    """A server of OpenAI's HTTP to be started.

    Attributes:
        system: whose it is.
        mode: how it computes.
        command: without its port, which every one of them takes as `--port`.
        environment: beyond ours.
        version_command: prints the version, in its last line.
    """

    system: str
    mode: str
    command: tuple[str, ...]
    version_command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.system} {self.mode}"

    @property
    def precision(self) -> str:
        """What its matrices are read in."""
        return self.mode.partition(" ")[0]


def quire(model: str, mode: Mode, threads: int, run_dir: Path) -> Engine:
    """`quire serve`, where nobody else's stack is seen; a mode's flags may begin with a model."""
    ours = ("--threads", str(threads), "--max-model-len", str(MAX_MODEL_LEN))
    named = mode.flags[:1] if mode.flags and not mode.flags[0].startswith("-") else ()
    return Engine(
        QUIRE,
        mode.name,
        (
            *(sys.executable, "-m", "quire", "serve", *(named or (model,))),
            *("--grpc-port", str(free_port()), *ours, *mode.flags[len(named) :]),
        ),
        (sys.executable, "-m", "quire", "--version"),
        (("QUIRE_RUN", str(run_dir)),),
    )


def llama(server: Path, mode: Mode, threads: int) -> Engine:
    """llama.cpp's server; a mode's flags name the model."""
    return Engine(
        "llama.cpp",
        mode.name,
        (
            *(str(server), "--host", LOOPBACK, "-t", str(threads), "-tb", str(threads)),
            *("-np", "32", "-c", str(32 * 1536), "-b", "2048", "-ub", "512", *mode.flags),
        ),
        (str(server), "--version"),
    )


def openvino(python: Path, mode: Mode, threads: int) -> Engine:
    """OpenVINO GenAI behind `openvino_server`; a mode's flags name the model."""
    return Engine(
        "OpenVINO GenAI",
        mode.name,
        (str(python), "-P", str(_SHIM), "--threads", str(threads), *mode.flags),
        (str(python), "-c", _VERSION_OF.format("openvino-genai")),
    )


def vllm(python: Path, mode: Mode, cores: Sequence[int], preload: str | None) -> Engine:
    """vLLM's server, a thread on each of the cores; a mode's flags begin with the model."""
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if preload is not None:
        environment["LD_PRELOAD"] = preload
    return Engine(
        "vLLM",
        mode.name,
        (
            *(str(python), "-m", "vllm.entrypoints.cli.main", "serve"),
            *(*mode.flags, "--host", LOOPBACK, "--max-model-len", str(MAX_MODEL_LEN)),
        ),
        (str(python), "-c", _VERSION_OF.format("vllm-cpu")),
        tuple(environment.items()),
    )


def free_port() -> int:
    """A TCP port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port
