"""What stays as it was when a process of a stack has to be started again."""

import asyncio
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire import LLM
from quire.client.state import fetch_state
from quire.process import ChildSpec
from quire.registry import ProcessRecord, running_stacks
from quire.supervisor import Restarts, Supervisor
from tests.gateway import tiny_model
from tests.worker.builders import write_tiny_llama


@pytest.fixture
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
@pytest.mark.usefixtures("_stack")
@pytest.mark.parametrize("name", ["scheduler", "worker-0"])
def test_metrics_stay_where_they_were(name: str) -> None:
    before = process(name).metrics
    assert before is not None
    after = restart(name).metrics
    assert after == before
    with urllib.request.urlopen(after) as answer:
        assert b"quire:" in answer.read()


@pytest.mark.chaos
@pytest.mark.usefixtures("_stack")
def test_a_worker_has_as_many_blocks_as_before() -> None:
    before = num_blocks()
    restart("worker-0")
    assert command_line("worker-0")[-2:] == ["--num-blocks", str(before)]
    assert num_blocks() == before


def num_blocks() -> int:
    [stack] = running_stacks()
    return int(asyncio.run(fetch_state(stack.scheduler))["blocks"]["total"])


def command_line(name: str) -> list[str]:
    return Path(f"/proc/{process(name).pid}/cmdline").read_text().split("\0")[:-1]


SERVE_ONCE_THEN_REFUSE = """
import sys
if sys.argv[1:] == ["like", "before"]:
    sys.exit(2)
print('quire-ready {"address": "here", "restart_arguments": ["like", "before"]}', flush=True)
"""


async def test_what_served_once_is_not_given_up() -> None:
    """Its configuration was right: what it lacks now may be there a moment later."""
    restarts = Restarts(first_delay_s=0.001, max_delay_s=0.01)
    supervisor = Supervisor(log=lambda *_: None, restarts=restarts)
    command = (sys.executable, "-c", SERVE_ONCE_THEN_REFUSE)
    member = supervisor.add(ChildSpec("worker-0", "worker", command))
    async with asyncio.timeout(60):
        while member.failed_starts <= restarts.max_failed_starts:  # noqa: ASYNC110 - a child dies
            await asyncio.sleep(0.01)
    assert not supervisor.failed.done()
    await supervisor.kill()
