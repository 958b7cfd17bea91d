"""A cell on TCP whose workers and router reach the scheduler by whatever way a test lays.

The processes are started as an operator would start them on several machines, and kept running by
the supervisor of `quire serve`, in this process. Any of them may dial through a proxy, or live in a
network namespace of its own, or be another program than ours.
"""

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quire.hangs import Patience
from quire.process import ChildSpec, quire_command
from quire.registry import ProcessRecord
from quire.supervisor import Supervisor
from tests.chaos.stack import MAX_MODEL_LEN, Stack
from tests.ports import free_port

MODEL = "smollm2"


@dataclass(frozen=True)
class Way:
    """How one process is started, and by which way it reaches the scheduler."""

    dials: str | None = None
    """HOST:PORT; None: the scheduler's own address."""
    within: Sequence[str] = ()
    """A command that runs it: `ip netns exec NAME`."""
    module: str | None = None
    """What runs in place of `worker`."""
    environment: Mapping[str, str] = field(default_factory=dict)


class ByHand(Stack):
    """See `laid_out`."""

    def __init__(self, supervisor: Supervisor, port: int, scheduler: str, log: list[str]) -> None:
        self._supervisor = supervisor
        self._port = port
        self._scheduler = scheduler
        self.log = log
        """What the processes said, line by line."""

    @property
    def url(self) -> str:
        """See `Stack`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def scheduler(self) -> str:
        """See `Stack`."""
        return self._scheduler

    def processes(self) -> dict[str, ProcessRecord]:
        """See `Stack`."""
        return {
            member.spec.name: ProcessRecord(
                name=member.spec.name,
                role=member.spec.role,
                pid=member.process.pid if member.process else None,
                address=member.ready[0].address if member.ready else "",
                metrics=member.ready[0].metrics if member.ready else None,
                state=member.state.value,
                restarts=member.restarts,
                started_at=None,
            )
            for member in self._supervisor.members
        }


@contextlib.asynccontextmanager
async def laid_out(
    model_dir: Path,
    ways: Mapping[str, Way],
    *,
    listen: str = "127.0.0.1",
    scheduler_port: int | None = None,
    scheduler_flags: Sequence[str] = (),
    worker_flags: Sequence[str] = (),
    num_workers: int = 2,
    patience: Patience | None = None,
) -> AsyncIterator[ByHand]:
    """A scheduler, which also hears who comes to `listen`, workers and a router, when all of them
    serve.

    `ways` names those that go by a way of their own: "worker-0", "router".
    """
    log: list[str] = []
    supervisor = Supervisor(log=lambda name, line: log.append(f"{name}: {line}"), patience=patience)
    number, door = scheduler_port or free_port(), free_port()
    scheduler = f"127.0.0.1:{number}"
    model = ("--model", str(model_dir), "--served-model-name", MODEL)
    where = ("--listen", f"{listen}:{number}", "--metrics-port", "0")
    supervisor.add(
        ChildSpec("scheduler", "scheduler", quire_command("scheduler", *where, *scheduler_flags))
    )
    for index in range(num_workers):
        flags = ("--max-model-len", str(MAX_MODEL_LEN), "--metrics-port", "0", "--threads", "1")
        own = ("--replica-id", f"replica-{index}", *flags, *worker_flags)
        name = f"worker-{index}"
        supervisor.add(_spec(name, "worker", ways.get(name, Way()), scheduler, *model, *own))
    at = ("--port", str(door), "--grpc-port", str(free_port()))
    supervisor.add(_spec("router", "router", ways.get("router", Way()), scheduler, *model, *at))
    stack = ByHand(supervisor, door, scheduler, log)
    try:
        await supervisor.until_served()
        await stack.until_whole(num_workers)
        yield stack
    except BaseException:
        print("\n".join(log[-60:]))
        raise
    finally:
        await supervisor.kill()


def _spec(name: str, role: str, way: Way, scheduler: str, *flags: str) -> ChildSpec:
    command = quire_command(role, "--scheduler", way.dials or scheduler, *flags)
    if way.module is not None:  # it is no installed package: found from the checkout's root
        command = (sys.executable, "-m", way.module, *command[4:])
    return ChildSpec(name, role, (*way.within, *command), tuple(way.environment.items()))
