"""A supervisor on a machine that has just nothing left: no descriptor, no room on the disk."""

import asyncio
import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quire import stack as stack_module
from quire.models import ResolvedModel
from quire.options import StackOptions
from quire.registry import StackRecord
from quire.stack import Stack
from quire.supervisor import State, Supervisor
from tests.quire.test_supervisor import QUICK, SERVE_UNTIL_TERM, Watched, child


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """For new files of this process; those that it has stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_what_served_is_started_when_the_machine_can_again() -> None:
    watched = Watched()
    member = watched.supervisor.add(child(SERVE_UNTIL_TERM))
    try:
        await watched.supervisor.until_served()
        assert member.process is not None
        with no_descriptor_left():
            os.kill(member.process.pid, signal.SIGKILL)
            await watched.until(lambda: member.refused_starts > QUICK.max_failed_starts)
        assert any("cannot be started: Too many open files" in line for line in watched.lines)
        await watched.until(lambda: member.state is State.READY)
        assert not watched.supervisor.failed.done()
    finally:
        await watched.supervisor.kill()


async def test_what_served_is_not_given_up_when_it_then_dies_at_its_start(tmp_path: Path) -> None:
    """As it may where memory is still short; three times in a row."""
    flag = tmp_path / "short"
    program = (
        f"import os, sys; sys.exit(1) if os.path.exists({str(flag)!r}) else None\n"
        + SERVE_UNTIL_TERM
    )
    watched = Watched()
    member = watched.supervisor.add(child(program))
    try:
        await watched.supervisor.until_served()
        assert member.process is not None
        flag.touch()
        os.kill(member.process.pid, signal.SIGKILL)
        await watched.until(lambda: member.failed_starts > QUICK.max_failed_starts)
        flag.unlink()
        await watched.until(lambda: member.state is State.READY)
        assert not watched.supervisor.failed.done()
    finally:
        await watched.supervisor.kill()


async def test_what_never_served_is_given_up() -> None:
    watched = Watched()
    with no_descriptor_left():
        watched.supervisor.add(child(SERVE_UNTIL_TERM))
        failure = await watched.supervisor.failed
    assert str(failure) == "worker-0: cannot be started: Too many open files"
    await watched.supervisor.kill()


async def test_a_keeper_that_ends_by_an_error_is_the_stacks_failure() -> None:
    def on_change() -> None:
        raise RuntimeError("unforeseen")

    supervisor = Supervisor(log=lambda name, line: None, on_change=on_change)
    supervisor.add(child(SERVE_UNTIL_TERM))
    try:
        failure = await asyncio.wait_for(supervisor.failed, 30)
        assert "worker-0: cannot be looked after: RuntimeError('unforeseen')" in str(failure)
    finally:
        await supervisor.kill()


async def test_a_record_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    written: list[StackRecord] = []

    def publish(record: StackRecord) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(record)

    monkeypatch.setattr(stack_module, "publish", publish)
    lines: list[str] = []
    stack = Stack(
        ResolvedModel(tmp_path, "tiny"),
        StackOptions(device="cpu", load_format="dummy"),
        log=lambda name, line: lines.append(line),
    )
    stack.run_dir.mkdir(exist_ok=True)
    try:
        stack._publish()
        stack._publish()
        assert [line.partition("warning ")[2] for line in lines] == [
            "quire ps will not know of changes: [Errno 28] No space left on device"
        ]
        full = False
        stack._publish()
        assert len(written) == 1
    finally:
        await stack.kill()
