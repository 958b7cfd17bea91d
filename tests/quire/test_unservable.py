"""A model that cannot be served ends `quire serve` and `LLM` at once, with the worker's one line.

The directory is one that the router is content with: what is wrong with it, only the worker sees.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quire import LLM, SamplingParams
from quire.errors import StackFailed
from tests.gateway import tiny_model
from tests.ports import free_port
from tests.worker.builders import write_tiny_llama

WEIGHTS = "model.safetensors"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A whole model with a tokenizer of its own."""
    tiny_model.build(tmp_path / "tiny")
    return write_tiny_llama(tmp_path / "tiny", vocab_size=400)


def truncate_weights(directory: Path) -> None:
    weights = directory / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])


def truncate_header(directory: Path) -> None:
    weights = directory / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])


def name_another_architecture(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["NoSuchForCausalLM"]
    (directory / "config.json").write_text(json.dumps(config))


DAMAGES = [
    (truncate_weights, f"{WEIGHTS} is truncated or damaged: it has 350472 bytes and its header"),
    (truncate_header, f"{WEIGHTS} is truncated or damaged: it has 100 bytes and claims a header"),
    (name_another_architecture, "architecture 'NoSuchForCausalLM' is not supported; known: Llama"),
]


def serve(model: Path) -> "subprocess.CompletedProcess[str]":
    """`quire serve` to its end."""
    command = [sys.executable, "-m", "quire", "serve", str(model), "--threads", "1"]
    command += ["--port", str(free_port()), "--grpc-port", str(free_port())]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_undamaged_it_is_served(directory: Path) -> None:
    with LLM(str(directory), threads=1) as llm:
        [output] = llm.generate("the quick", SamplingParams(temperature=0, max_tokens=3))
    assert 1 <= len(output.outputs[0].token_ids) <= 3


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_serve_ends_with_the_workers_words(
    directory: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(directory)
    finished = serve(directory)
    assert finished.returncode == 2, finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith(f"error: worker-0: model {directory}: {reason}")
    assert finished.stderr.count(reason) == 1
    assert "Traceback" not in finished.stderr + finished.stdout
    assert "is ready" not in finished.stdout


def test_the_python_api_raises_the_workers_words(directory: Path) -> None:
    name_another_architecture(directory)
    with pytest.raises(
        StackFailed, match=r"worker-0: model .* 'NoSuchForCausalLM' is not"
    ) as failed:
        LLM(str(directory), threads=1)
    assert failed.value.exit_code == 2
    assert "\n" not in str(failed.value)


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    finished = serve(tmp_path / "nothing")
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: model '{tmp_path}/nothing' is no directory")
    assert finished.stderr.count("\n") == 1
