"""Builds and runs every image's text without a container engine: `python deploy/check_images.py`.

The Dockerfiles are read, not repeated: what they COPY goes into a clean folder, their `pip install`
line runs in a clean virtual environment, their ENTRYPOINT and CMD are started, their HEALTHCHECK
must pass, one completion must come through all three processes, and SIGTERM must end each with 0.
Router and scheduler must have no torch.

Three things differ from a container, and only these: ports are free ones, `/models` and the host
names of the other services are mapped to this machine, and `apt-get` and `useradd` do not run.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPONENTS = ("scheduler", "worker", "router")
PORTS = ("8000", "50050", "50051", "50052", "9401", "9402")
WITHOUT_TORCH = ("router", "scheduler")
MODEL = "smollm2"
HEALTHY_WITHIN_S = 300.0
_ARRAY_INSTRUCTIONS = ("ENTRYPOINT", "CMD")


@dataclass(slots=True)
class Dockerfile:
    """The instructions that matter here."""

    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    copies: list[tuple[list[str], str]] = field(default_factory=list)
    """Sources, and the destination under WORKDIR."""
    runs: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    user: str = "root"

    @classmethod
    def read(cls, path: Path) -> "Dockerfile":
        """Reads a Dockerfile of one stage."""
        file = cls()
        joined = path.read_text().replace("\\\n", " ")
        lines = (line.strip() for line in joined.splitlines())
        for line in (line for line in lines if line and not line.startswith("#")):
            instruction, _, rest = line.partition(" ")
            file._add(instruction, rest.strip())
        return file

    def _add(self, instruction: str, rest: str) -> None:
        if instruction == "ARG":
            name, _, default = rest.partition("=")
            self.arguments[name] = default
        elif instruction == "ENV":
            self.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif instruction == "COPY":
            *sources, destination = rest.split()
            self.copies.append((sources, destination))
        elif instruction == "RUN":
            self.runs.append(rest)
        elif instruction == "USER":
            self.user = rest
        elif instruction in _ARRAY_INSTRUCTIONS:
            words = json.loads(rest)
            if instruction == "ENTRYPOINT":
                self.entrypoint = words
            else:
                self.command = words
        elif instruction == "HEALTHCHECK":
            self.healthcheck = json.loads(rest.partition("CMD")[2])


@dataclass(frozen=True, slots=True)
class Image:
    """A Dockerfile carried out in a folder of its own."""

    component: str
    dockerfile: Dockerfile
    home: Path
    ports: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """What a process in the container would see, mapped to this machine."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        models = str(self.home.parent / "models")
        image = {
            name: value.replace("/models", models)
            for name, value in self.dockerfile.environment.items()
        }
        return kept | image | {"PATH": f"{self.home}/venv/bin:{os.environ['PATH']}"}

    def mapped(self, words: list[str]) -> list[str]:
        """Words of a command, with ports, interfaces and service names of this machine."""
        text = json.dumps(words).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"\b(scheduler|router):", "127.0.0.1:", text)
        pattern = r"\b(" + "|".join(self.ports) + r")\b"
        mapped: list[str] = json.loads(re.sub(pattern, lambda m: self.ports[m[0]], text))
        return mapped

    def build(self, arguments: dict[str, str]) -> None:
        """COPY and `RUN pip install`, in a clean folder and a clean virtual environment."""
        app = self.home / "app"
        app.mkdir(parents=True)
        for sources, destination in self.dockerfile.copies:
            for source in sources:
                _copy(ROOT / source, app / destination)
        subprocess.run([sys.executable, "-m", "venv", self.home / "venv"], check=True)
        environment = self.environment | self.dockerfile.arguments | arguments
        for line in self.dockerfile.runs:
            if "pip install" in line:
                print(f"{self.component}: {line}", flush=True)
                subprocess.run(["sh", "-ec", line], cwd=app, env=environment, check=True)
            else:
                print(f"{self.component}: not run here: {line}", flush=True)

    def run(self, words: list[str]) -> str:
        """Runs a command as in the container; its output. Raises CalledProcessError."""
        finished = subprocess.run(
            self.mapped(words),
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return finished.stdout

    def start(self) -> "subprocess.Popen[bytes]":
        """ENTRYPOINT and CMD."""
        words = self.mapped([*self.dockerfile.entrypoint, *self.dockerfile.command])
        print(f"{self.component}: {shlex.join(words)}", flush=True)
        program = shutil.which(words[0], path=self.environment["PATH"])
        return subprocess.Popen(
            [program or words[0], *words[1:]], cwd=self.home, env=self.environment
        )

    def is_healthy(self) -> bool:
        """HEALTHCHECK, once."""
        words = self.mapped(self.dockerfile.healthcheck)
        finished = subprocess.run(words, env=self.environment, capture_output=True, check=False)
        return finished.returncode == 0


def check(images: list[Image]) -> None:
    """Runs the three together. Raises AssertionError or CalledProcessError."""
    for image in images:
        assert image.dockerfile.user != "root", f"{image.component} runs as root"
        if image.component in WITHOUT_TORCH:
            found = image.run(["python", "-c", _FIND_TORCH]).strip()
            assert found == "None", f"the {image.component} image has torch: {found}"
    by_name = {image.component: image for image in images}
    print("worker:", by_name["worker"].run(["quire", "pull", MODEL]).strip(), flush=True)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_running(image)) for image in images]
        for image, process in zip(images, processes, strict=True):
            _until_healthy(image, process)
        print("answer:", _ask(by_name["router"].ports["8000"]), flush=True)
        for image, process in reversed(list(zip(images, processes, strict=True))):
            process.terminate()
            code = process.wait(timeout=60)
            assert code == 0, f"{image.component} ended with {code} on SIGTERM"
            print(f"{image.component}: ended with 0 on SIGTERM", flush=True)


_FIND_TORCH = "import importlib.util as find; print(find.find_spec('torch'))"


@contextlib.contextmanager
def _running(image: Image) -> "Iterator[subprocess.Popen[bytes]]":
    process = image.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _until_healthy(image: Image, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while not image.is_healthy():
        assert process.poll() is None, f"{image.component} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{image.component} is not healthy"
        time.sleep(0.5)
    print(f"{image.component}: healthy", flush=True)


def _ask(port: str) -> str:
    """One greedy completion, as soon as the router says that it is ready."""
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready").close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the router never became ready"
            time.sleep(0.5)
    question = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 2}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(question | {"temperature": 0}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        text: str = json.load(response)["choices"][0]["text"]
    assert "Paris" in text, text
    return text


def _copy(source: Path, destination: Path) -> None:
    if source.is_dir():
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, destination, ignore=ignore, dirs_exist_ok=True)
    elif destination.is_dir():
        shutil.copy(source, destination)
    else:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, destination)


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def main() -> None:
    """Builds and checks every image; leaves nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build's"
    )
    given = dict(pair.split("=", 1) for pair in parser.parse_args().build_arg)
    ports = {port: _free_port() for port in PORTS}
    with tempfile.TemporaryDirectory(prefix="quire-images-") as home:
        images = []
        for component in COMPONENTS:
            dockerfile = Dockerfile.read(ROOT / "deploy" / f"Dockerfile.{component}")
            image = Image(component, dockerfile, Path(home) / component, ports)
            image.build(
                {name: value for name, value in given.items() if name in dockerfile.arguments}
            )
            images.append(image)
        check(images)
    print("3 images checked")


if __name__ == "__main__":
    main()
