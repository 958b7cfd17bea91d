"""A stack's file is believed only while its supervisor lives."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire import registry
from quire.registry import ProcessRecord, StackRecord, publish, running_stacks, withdraw


def record(tmp_path: Path, **changes: Any) -> StackRecord:
    run_dir = tmp_path / "run-one"
    run_dir.mkdir(exist_ok=True)
    mine = StackRecord(
        pid=os.getpid(),
        start_ticks=registry.start_ticks(os.getpid()),
        model="tiny",
        url="http://127.0.0.1:8000",
        grpc="127.0.0.1:50050",
        scheduler="unix:/run/scheduler.sock",
        admin="unix:/run/admin.sock",
        run_dir=str(run_dir),
        started_at=1.0,
        processes=(ProcessRecord("worker-0", "worker", 17, "unix:/w", None, "ready", 0, 2.0),),
    )
    return dataclasses.replace(mine, **changes)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    mine = record(tmp_path)
    publish(mine)
    assert running_stacks() == [mine]


def test_the_last_record_of_a_stack_counts(tmp_path: Path) -> None:
    publish(record(tmp_path))
    publish(record(tmp_path, model="renamed"))
    assert [stack.model for stack in running_stacks()] == ["renamed"]


def test_a_withdrawn_stack_is_gone(tmp_path: Path) -> None:
    mine = record(tmp_path)
    publish(mine)
    withdraw(mine.run_dir)
    withdraw(mine.run_dir)
    assert running_stacks() == []


def test_a_dead_supervisors_leftovers_are_removed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = record(tmp_path, pid=child.pid, start_ticks=1)
    publish(dead)
    assert running_stacks() == []
    assert not (tmp_path / "run-one").exists()


def test_a_process_that_took_over_the_id_is_not_the_supervisor(tmp_path: Path) -> None:
    mine = record(tmp_path)
    assert mine.start_ticks is not None
    publish(dataclasses.replace(mine, start_ticks=mine.start_ticks - 1))
    assert running_stacks() == []


def test_a_file_of_another_version_is_passed_over(tmp_path: Path) -> None:
    mine = record(tmp_path)
    publish(mine)
    (registry._home() / "run-other.json").write_text('{"pid": 1}')
    (registry._home() / "run-torn.json").write_text('{"pid": ')
    assert running_stacks() == [mine]


@pytest.mark.parametrize("arguments", [(), ("--address", "unix:/run/admin.sock")])
def test_a_stack_whose_workers_would_come_back_is_not_drained(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    publish(record(tmp_path))
    drain = ("-m", "quire", "drain", *arguments)
    done = subprocess.run([sys.executable, *drain], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: the stack of tiny is kept running by process {os.getpid()}, which would start its "
        f"workers again; `quire serve` finishes what runs and ends with Ctrl-C or `kill "
        f"{os.getpid()}`\n"
    )
