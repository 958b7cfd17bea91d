"""Which stacks run on this machine: one JSON file per stack, written by its supervisor.

A file is believed only while the process that wrote it lives: its id and its start time (which a
later process with the same id does not share) must both match. So a supervisor that was killed
leaves nothing that could mislead, and its leftovers are removed by the next reader.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.errors import ConfigurationError
from quire.paths import runtime_dir


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process of a stack."""

    name: str
    role: str
    pid: int | None
    """None while it waits to be started again."""
    address: str
    metrics: str | None
    state: str
    restarts: int
    started_at: float | None
    """Unix time, seconds."""


@dataclass(frozen=True, slots=True)
class StackRecord:
    """One running stack."""

    pid: int
    """Of its supervisor."""
    start_ticks: int | None
    """When that process started, in the kernel's own count; None where the system has none."""
    model: str
    url: str
    """Of its OpenAI API: "http://127.0.0.1:8000" or "http+unix:///path"."""
    grpc: str
    """Target of its InferenceService."""
    scheduler: str
    """Target of its SchedulerService."""
    admin: str
    """Target of its AdminService."""
    run_dir: str
    started_at: float
    """Unix time, seconds."""
    processes: tuple[ProcessRecord, ...]


def start_ticks(pid: int) -> int | None:
    """When a process started (clock ticks since boot); None if it is gone or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])


def is_alive(record: StackRecord) -> bool:
    """Whether the supervisor that wrote the record still runs."""
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return start_ticks(record.pid) == record.start_ticks


def publish(record: StackRecord) -> None:
    """Writes the record of a stack, in place of the one before."""
    path = _path(record.run_dir)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(record), indent=2))
    partial.rename(path)


def withdraw(run_dir: str) -> None:
    """Removes the record of the stack that uses this run directory."""
    _path(run_dir).unlink(missing_ok=True)


def running_stacks() -> list[StackRecord]:
    """Stacks whose supervisor lives, oldest first; removes what dead ones left."""
    records = []
    for path in sorted(_home().glob("*.json")):
        record = _read(path)
        if record is None:
            continue
        if is_alive(record):
            records.append(record)
        else:
            path.unlink(missing_ok=True)
            shutil.rmtree(record.run_dir, ignore_errors=True)
    return sorted(records, key=lambda record: record.started_at)


def the_served_stack() -> StackRecord | None:
    """The stack that is meant when none is named: the only one on TCP, or the only one.

    Stacks on unix sockets alone belong to a program (`LLM`) that uses them itself.
    """
    stacks = running_stacks()
    on_tcp = [stack for stack in stacks if stack.url.startswith(("http://", "https://"))]
    candidates = on_tcp or stacks
    return candidates[0] if len(candidates) == 1 else None


def the_address(of: Callable[[StackRecord], str], otherwise: str) -> str:
    """An address of the stack that is meant when none is named. Raises ConfigurationError if there
    is no such stack, with the addresses to choose from and what to do `otherwise`."""
    if stack := the_served_stack():
        return of(stack)
    stacks = [f"{of(stack)} ({stack.model})" for stack in running_stacks()]
    names = f": {', '.join(stacks)}" if stacks else ""
    found = f"{len(stacks) or 'no'} stacks run here"
    raise ConfigurationError(f"{found}; {otherwise}{names}")


def _read(path: Path) -> StackRecord | None:
    """None for a file that vanished or that another version wrote."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        processes = tuple(ProcessRecord(**process) for process in fields.pop("processes"))
        return StackRecord(**fields, processes=processes)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _home() -> Path:
    home = runtime_dir() / "stacks"
    home.mkdir(mode=0o700, exist_ok=True)
    return home


def _path(run_dir: str) -> Path:
    return _home() / f"{Path(run_dir).name}.json"
