"""What stays as it was when a process of a stack has to be started again."""

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire import LLM
from quire.registry import ProcessRecord, running_stacks
from tests.gateway import tiny_model
from tests.worker.builders import write_tiny_llama


@pytest.fixture(autouse=True)
def _stack(tmp_path: Path) -> Iterator[None]:
    tiny_model.build(tmp_path / "tiny")
    with LLM(str(write_tiny_llama(tmp_path / "tiny", vocab_size=400)), threads=1):
        yield


def process(name: str) -> ProcessRecord:
    [stack] = running_stacks()
    return next(process for process in stack.processes if process.name == name)


def restart(name: str) -> ProcessRecord:
    """The process that was started in the place of the one that is killed here."""
    before = process(name)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    while (now := process(name)).restarts == before.restarts or now.state != "ready":
        time.sleep(0.02)
    return now


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["scheduler", "worker-0"])
def test_metrics_stay_where_they_were(name: str) -> None:
    before = process(name).metrics
    assert before is not None
    after = restart(name).metrics
    assert after == before
    with urllib.request.urlopen(after) as answer:
        assert b"quire:" in answer.read()
