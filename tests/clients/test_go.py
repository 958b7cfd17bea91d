"""The Go client: its code is fresh and in form, and it talks to the real stack.

Built with Debian's own packages (see clients/go/README.md); skipped where they are not.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire import Client, SamplingParams
from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve

CLIENT = Path(__file__).resolve().parents[2] / "clients" / "go"
IMPORT_PATH = "quire/clients/go"
DEBIAN = Path("/usr/share/gocode")
KEY = "secret"
TEMPLATE = Path(__file__).parents[1] / "gateway" / "templates" / "hermes.jinja"

_VERSION = re.compile(r"^//.*\bv\d+\.\d+.*$", re.MULTILINE)
"""Of a generator, in its comments."""

pytestmark = pytest.mark.skipif(
    not (shutil.which("go") and (DEBIAN / "src/google.golang.org/protobuf").is_dir()),
    reason="needs golang-go, golang-google-grpc-dev and golang-google-protobuf-dev",
)


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The client's directory as Go knows it without modules, and the environment for that."""
    root = tmp_path_factory.mktemp("gopath")
    here = root / "src" / IMPORT_PATH
    here.parent.mkdir(parents=True)
    here.symlink_to(CLIENT)
    environment = {"GO111MODULE": "off", "GOPATH": f"{root}:{DEBIAN}", "PWD": str(here)}
    return here, os.environ | environment


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--max-model-len", "1024", "--api-key", KEY, "--chat-template", str(TEMPLATE))
    with serve("smollm2", tmp_path_factory.mktemp("run"), *flags) as running:
        yield running


@pytest.fixture(scope="module")
def chat(go: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built."""
    return _built(go, "chat", tmp_path_factory.mktemp("bin"))


def test_the_code_is_in_form_and_vets(go: tuple[Path, dict[str, str]]) -> None:
    assert _run(["gofmt", "-l", str(CLIENT)], go).strip() == ""
    _go(go, "vet", "-tags", "grpc_1_33", "./...")


@pytest.mark.skipif(
    not all(map(shutil.which, ("protoc", "protoc-gen-go", "protoc-gen-go-grpc"))),
    reason="needs protobuf-compiler, protoc-gen-go and protoc-gen-go-grpc",
)
def test_what_is_generated_is_fresh(tmp_path: Path) -> None:
    subprocess.run([CLIENT / "generate.sh", tmp_path], check=True, timeout=60)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in (CLIENT / "quirev1").iterdir())
    for name in names:
        fresh, committed = (
            _VERSION.sub("", (directory / name).read_text())
            for directory in (tmp_path, CLIENT / "quirev1")
        )
        assert fresh == committed, f"{name} is not fresh; run clients/go/generate.sh"


def test_its_own_tests_pass_against_the_real_stack(
    go: tuple[Path, dict[str, str]], server: Server
) -> None:
    here, environment = go
    told = {"QUIRE_TARGET": f"127.0.0.1:{server.grpc_port}", "QUIRE_API_KEY": KEY}
    printed = _go(
        (here, environment | told), "test", "-count=1", "-v", "-tags", "grpc_1_33", IMPORT_PATH
    )
    assert "--- SKIP" not in printed
    assert "--- PASS: TestAStreamAddsUpToTheWholeAnswer" in printed
    blocks = idle_state(server.state)["blocks"]
    assert blocks["free"] + blocks["cached"] == blocks["total"]


def test_the_example_streams_what_the_python_client_gets(chat: Path, server: Server) -> None:
    question = "What is the capital of France?"
    printed = subprocess.run(
        [*_example(chat, server), "-temperature", "0", "-max-tokens", "24", question],
        env=os.environ | {"QUIRE_API_KEY": KEY},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    ).stdout
    with Client(f"127.0.0.1:{server.grpc_port}", api_key=KEY) as client:
        params = SamplingParams(temperature=0, max_tokens=24)
        [sample] = client.generate([{"role": "user", "content": question}], params).outputs
    assert printed == sample.text + "\n"


def test_ctrl_c_in_the_example_gives_its_blocks_back(chat: Path, server: Server) -> None:
    with subprocess.Popen(
        [*_example(chat, server), "-max-tokens", "900", "Tell me a very long story."],
        env=os.environ | {"QUIRE_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"context canceled" in said
    blocks = idle_state(server.state)["blocks"]
    assert blocks["free"] + blocks["cached"] == blocks["total"]


def test_the_example_with_tools_calls_its_own_function(
    go: tuple[Path, dict[str, str]], server: Server, tmp_path: Path
) -> None:
    printed = subprocess.run(
        _example(_built(go, "tools", tmp_path), server),
        env=os.environ | {"QUIRE_API_KEY": KEY},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    ).stdout
    called, _, answer = printed.partition("\n")
    said = re.fullmatch(r"multiply\((.*)\) = (-?\d+)", called)
    assert said is not None, printed
    factors = json.loads(said[1])
    assert factors["a"] * factors["b"] == int(said[2])
    assert answer.strip()


def _built(go: tuple[Path, dict[str, str]], example: str, into: Path) -> Path:
    program = into / example
    _go(go, "build", "-tags", "grpc_1_33", "-o", str(program), f"{IMPORT_PATH}/examples/{example}")
    return program


def _example(chat: Path, server: Server) -> list[str]:
    return [str(chat), "-target", f"127.0.0.1:{server.grpc_port}"]


def _go(go: tuple[Path, dict[str, str]], *arguments: str) -> str:
    return _run(["go", *arguments], go)


def _run(command: list[str], go: tuple[Path, dict[str, str]]) -> str:
    here, environment = go
    done = subprocess.run(
        command,
        cwd=here,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
