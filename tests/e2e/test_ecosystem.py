"""What is built on the openai package, against `quire serve`: the programs in `ecosystem/`.

They live in a virtual environment of their own, since they need other versions of what we need.
It is made once per machine, with pip, in the cache; where pip finds no index they are skipped.
While a program runs, `ecosystem/loopback` sees to it that it talks to nobody beyond this machine.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.folders import cache_dir
from tests.e2e.server import Server, serve

PROGRAMS = Path(__file__).parent / "ecosystem"
REQUIREMENTS = PROGRAMS / "requirements.txt"
TEMPLATE = Path(__file__).parents[1] / "gateway" / "templates" / "hermes.jinja"
NO_INDEX = "(from versions: none)"
"""What pip says where nobody answers; of a version that an index lacks it names the others."""
INSTALL_S, RUN_S = 1500, 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_S + RUN_S)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a template that knows tools; it also knows thoughts, which this model has none of."""
    flags = ("--max-model-len", "2048", "--chat-template", str(TEMPLATE))
    runtime_dir = tmp_path_factory.mktemp("run")
    with serve("smollm2", runtime_dir, *flags, "--reasoning-parser", "none") as running:
        yield running


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has the libraries."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    identity = hashlib.sha256(version.encode() + REQUIREMENTS.read_bytes()).hexdigest()[:12]
    home = cache_dir() / "tests" / f"ecosystem-{identity}"
    with locked(home):
        if not home.is_dir():
            make_environment(home)
    return home / "bin" / "python"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One test process at a time makes what is at the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_environment(home: Path) -> None:
    """Whole or not at all: it takes its name once everything is in it."""
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", partial], check=True, timeout=INSTALL_S)
    python = str(partial / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--retries=1"]
    finished = subprocess.run(
        [*install, "--disable-pip-version-check", "--requirement", REQUIREMENTS],
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    if NO_INDEX in finished.stderr:
        pytest.skip(f"pip reaches no index: {finished.stderr.strip().splitlines()[-1]}")
    assert finished.returncode == 0, finished.stderr
    # Its interpreter is a link to ours, so what is started by its path works where it moves to.
    partial.rename(home)


def environment(server: Server, home: Path) -> dict[str, str]:
    """All that a program is told: nothing of the machine's own settings sends it elsewhere."""
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "PYTHONPATH": str(PROGRAMS / "loopback"),
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "HF_HUB_OFFLINE": "1",
        "LANGSMITH_TRACING": "false",
        # Else it downloads a list of prices when it is imported.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


@pytest.mark.parametrize("library", ["langchain", "llamaindex", "litellm", "instructor"])
def test_a_library_gets_what_it_asks_for(
    python: Path, server: Server, tmp_path: Path, library: str
) -> None:
    finished = subprocess.run(
        [python, PROGRAMS / f"use_{library}.py"],
        env=environment(server, tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"


def test_a_program_that_talks_beyond_loopback_is_ended(
    python: Path, server: Server, tmp_path: Path
) -> None:
    dials = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept: pass"
    finished = subprocess.run(
        [python, "-c", dials],
        env=environment(server, tmp_path),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert finished.returncode == 70
    assert "'192.0.2.1'" in finished.stderr
