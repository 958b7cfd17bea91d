"""The supervisor with real children: small Python programs that serve, die or refuse."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from quire.hangs import Patience
from quire.process import ChildSpec
from quire.supervisor import Restarts, State, Supervisor

QUICK = Restarts(first_delay_s=0.001, max_delay_s=0.01)

SERVE = """
import signal, sys
print('quire-ready {"role": "worker", "pid": 1, "address": "here"}', flush=True)
"""
SERVE_UNTIL_TERM = SERVE + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nsignal.pause()"
SERVE_AND_IGNORE_TERM = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    + SERVE
    + """
while True:
    signal.pause()
"""
)
REFUSE = "import sys; print('error: the port is taken', file=sys.stderr); sys.exit(2)"
DIE = "import sys; print('Traceback: it broke', file=sys.stderr); sys.exit(1)"


def child(program: str, *, name: str = "worker-0", role: str = "worker") -> ChildSpec:
    return ChildSpec(name, role, (sys.executable, "-c", program))


class Watched:
    """A supervisor, and what was seen of it."""

    def __init__(self, restarts: Restarts = QUICK, patience: Patience | None = None) -> None:
        self.lines: list[str] = []
        self.states: list[tuple[str, State]] = []
        self.changed = asyncio.Event()
        self._last: dict[str, State] = {}
        self.supervisor = Supervisor(
            log=lambda name, line: self.lines.append(f"{name}: {line}"),
            on_change=self._on_change,
            restarts=restarts,
            patience=patience,
        )

    def _on_change(self) -> None:
        self.changed.set()
        for member in self.supervisor.members:
            if self._last.get(member.spec.name) is not member.state:
                self._last[member.spec.name] = member.state
                self.states.append((member.spec.name, member.state))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched()
    yield watched
    await watched.supervisor.kill()


HEAR_HANGUPS = (
    "import signal, time\nsignal.signal(signal.SIGHUP, lambda *_: print('heard', flush=True))\n"
    "time.sleep(0.3)\n" + SERVE + "while True: signal.pause()"
)


async def test_a_hangup_reaches_who_serves_and_who_will(watched: Watched) -> None:
    """And nobody of another role, who would end of it."""
    hearer = watched.supervisor.add(child(HEAR_HANGUPS, name="router", role="router"))
    other = watched.supervisor.add(child(SERVE_UNTIL_TERM))

    async def until_heard(count: int) -> None:
        async with asyncio.timeout(30):
            while watched.lines.count("router: heard") < count:  # noqa: ASYNC110 - a child's line
                await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        while hearer.process is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
    watched.supervisor.hang_up("router")  # it does not serve yet
    await watched.supervisor.until_served()
    await until_heard(1)
    watched.supervisor.hang_up("router")
    await until_heard(2)
    assert (hearer.restarts, other.restarts, other.state) == (0, 0, State.READY)


async def test_a_child_serves_and_ends_when_asked(watched: Watched) -> None:
    member = watched.supervisor.add(child(SERVE_UNTIL_TERM))
    await watched.supervisor.until_served()
    (ready,) = member.ready
    assert ready.address == "here"
    await watched.supervisor.stop(["worker"], timeout_s=60)
    assert [state for _, state in watched.states] == [
        State.STARTING,
        State.READY,
        State.STOPPING,
        State.STOPPED,
    ]
    assert not any("killed" in line for line in watched.lines)


@pytest.mark.chaos
async def test_a_killed_child_is_started_again(watched: Watched) -> None:
    member = watched.supervisor.add(child(SERVE_UNTIL_TERM))
    await watched.supervisor.until_served()
    assert member.process is not None
    first = member.process.pid
    os.kill(first, signal.SIGKILL)
    await watched.until(lambda: member.restarts == 1 and member.state is State.READY)
    assert member.process.pid != first
    assert any("ended (killed by signal 9); starting it again" in line for line in watched.lines)


async def test_a_clean_exit_that_nobody_asked_for_is_a_death_too(watched: Watched) -> None:
    member = watched.supervisor.add(child(SERVE))
    await watched.until(lambda: member.restarts >= 2)
    assert not watched.supervisor.failed.done()
    said = [line for line in watched.lines if line.endswith("starting it again")]
    assert said
    assert all(" worker info ended (exit code 0); " in line for line in said)


async def test_exit_code_2_is_final_and_its_line_is_told(watched: Watched) -> None:
    watched.supervisor.add(child(SERVE_UNTIL_TERM, name="other"))
    watched.supervisor.add(child(REFUSE))
    failure = await watched.supervisor.failed
    assert (str(failure), failure.exit_code) == ("worker-0: the port is taken", 2)
    assert watched.lines == []  # not told twice


async def test_the_error_line_of_what_is_started_again_is_logged(watched: Watched) -> None:
    watched.supervisor.add(child(REFUSE.replace("exit(2)", "exit(1)")))
    await watched.supervisor.failed
    errors = [line for line in watched.lines if "the port is taken" in line]
    assert errors == ["worker-0: error: the port is taken"] * (QUICK.max_failed_starts - 1)


async def test_a_child_that_never_serves_is_given_up(watched: Watched) -> None:
    member = watched.supervisor.add(child(DIE))
    failure = await watched.supervisor.failed
    assert member.restarts == QUICK.max_failed_starts - 1
    assert failure.exit_code == 1
    assert "worker-0 ended 3 times before it served (exit code 1)" in str(failure)
    assert "it broke" in str(failure)


async def test_waiting_for_service_ends_with_the_failure(watched: Watched) -> None:
    watched.supervisor.add(child(REFUSE))
    with pytest.raises(Exception, match="the port is taken"):
        await watched.supervisor.until_served()


async def test_a_child_that_does_not_end_is_killed_after_its_time(watched: Watched) -> None:
    member = watched.supervisor.add(child(SERVE_AND_IGNORE_TERM))
    await watched.supervisor.until_served()
    await watched.supervisor.stop(["worker"], timeout_s=0.05)
    assert member.state is State.STOPPED
    assert any("worker warning not gone after 0.05 s: killed" in line for line in watched.lines)


async def test_roles_end_in_order(watched: Watched) -> None:
    for role in ("scheduler", "worker", "router"):
        watched.supervisor.add(child(SERVE_UNTIL_TERM, name=role, role=role))
    await watched.supervisor.until_served()
    await watched.supervisor.stop(["router", "worker", "scheduler"], timeout_s=60)
    ended = [name for name, state in watched.states if state is State.STOPPED]
    assert ended == ["router", "worker", "scheduler"]


async def test_a_child_that_waits_to_be_started_again_can_be_stopped() -> None:
    watched = Watched(Restarts(first_delay_s=3600, max_delay_s=3600))
    member = watched.supervisor.add(child(DIE))
    await watched.until(lambda: member.state is State.RESTARTING)
    await watched.supervisor.stop(["worker"], timeout_s=60)
    assert member.state is State.STOPPED


@pytest.mark.chaos
async def test_what_a_child_started_dies_with_it(watched: Watched, tmp_path: Path) -> None:
    fifo = tmp_path / "held-open"
    os.mkfifo(fifo)
    helper = f"import os, signal; os.open({str(fifo)!r}, os.O_WRONLY); signal.pause()"
    start_helper = f"import subprocess; subprocess.Popen([sys.executable, '-c', {helper!r}])\n"
    member = watched.supervisor.add(child("import sys\n" + start_helper + SERVE_UNTIL_TERM))
    await watched.supervisor.until_served()
    reader = await asyncio.to_thread(os.open, fifo, os.O_RDONLY)
    assert member.process is not None
    os.kill(member.process.pid, signal.SIGKILL)
    assert await asyncio.to_thread(os.read, reader, 1) == b""  # the helper's end was closed
    os.close(reader)


SUPERVISE = """
import asyncio, sys
sys.path.insert(0, {root!r})
from quire.process import ChildSpec
from quire.supervisor import Supervisor

async def main():
    supervisor = Supervisor(log=lambda *_: None)
    for name in ("one", "two"):
        supervisor.add(ChildSpec(name, "worker", (sys.executable, "-c", {program!r})))
    await supervisor.until_served()
    print(*(member.process.pid for member in supervisor.members), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.chaos
def test_no_child_outlives_a_killed_supervisor() -> None:
    root = str(Path(__file__).parents[2])
    source = SUPERVISE.format(root=root, program=SERVE_AND_IGNORE_TERM)
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        children = [int(pid) for pid in supervisor.stdout.readline().split()]
        watches = [os.pidfd_open(pid) for pid in children]
        supervisor.kill()
    assert len(watches) == 2
    for watch in watches:
        with contextlib.closing(os.fdopen(watch)):
            assert _ended(watch)


def _ended(pidfd: int) -> bool:
    """Waits for the process behind a pidfd; readable means that it has ended."""
    import select

    return bool(select.select([pidfd], [], [], 60)[0])
