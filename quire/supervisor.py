"""Keeps a set of child processes running: restarts what dies, gives up where that cannot help.

    starting ──ready line──▶ ready ──▶ stopping ──▶ stopped
        ▲                      │
        └── restarting ◀── it ended

A child that exits with code 2 says that its configuration is wrong, which is believed of one that
never served; one that dies several times in a row and never served is no better. Either resolves
`failed`, and whoever runs the supervisor stops everything. A child that lives and does nothing
(`quire.hangs`) is killed, and with that ends like any other. All of it runs on one event loop,
whose thread owns the children.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quire.errors import StackFailed
from quire.hangs import (
    LOOK_EVERY_S,
    Patience,
    ProcessTree,
    StoppedWatch,
    health_of,
    until_silent,
)
from quire.process import ChildProcess, ChildSpec, LogSink, Ready, info, warning

NOT_CURABLE = 2
"""The exit code of a process whose configuration is wrong."""


class State(StrEnum):
    """Of a member."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Restarts:
    """How eagerly a dead child is started again."""

    first_delay_s: float = 0.1
    max_delay_s: float = 5.0
    max_failed_starts: int = 3
    """Deaths in a row without ever having served after which it is given up."""

    def delay_s(self, failed_starts: int) -> float:
        """The pause after this many starts in a row that never served."""
        return min(self.first_delay_s * 2.0**failed_starts, self.max_delay_s)


class Member:
    """One child that shall run, and the process that is it now."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.state = State.STARTING
        self.process: ChildProcess | None = None
        self.ready: tuple[Ready, ...] = ()
        """What it last said when it began to serve, each of its ranks."""
        self.served = asyncio.Event()
        """Set while a process of it serves."""
        self.stop_asked = asyncio.Event()
        self.restarts = 0
        self.failed_starts = 0
        """Deaths in a row before it served."""
        self.refused_starts = 0
        """Starts in a row that the machine had no room for."""

    def next_spec(self) -> ChildSpec:
        """What to start: after one that served, its like."""
        if not self.ready:
            return self.spec
        command = (*self.spec.command, *self.ready[0].restart_arguments)
        return dataclasses.replace(self.spec, command=command)


class Supervisor:
    """Starts members and keeps them; one event loop owns it."""

    def __init__(
        self,
        *,
        log: LogSink,
        on_change: Callable[[], None] = lambda: None,
        restarts: Restarts | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.members: list[Member] = []
        self.failed: asyncio.Future[StackFailed] = asyncio.get_running_loop().create_future()
        """Resolved when a member cannot be kept running."""
        self._log = log
        self._on_change = on_change
        self._restarts = restarts or Restarts()
        self._patience = patience or Patience()
        self._keepers: dict[Member, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    def add(self, spec: ChildSpec) -> Member:
        """Starts a child and keeps it running."""
        member = Member(spec)
        self.members.append(member)
        self._keepers[member] = self._task(self._keep(member), member.spec.name)
        if self._patience.stopped_s and (self._looking is None or self._looking.done()):
            self._looking = self._task(self._look_for_stopped(), "supervisor")
        return member

    def _task(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Work that must not end by an error unheard: the stack could not be relied on any more."""

        def on_end(task: asyncio.Task[None]) -> None:
            if task.cancelled() or (error := task.exception()) is None or self.failed.done():
                return
            self.failed.set_result(StackFailed(f"{name}: cannot be looked after: {error!r}"))

        task = asyncio.create_task(work)
        task.add_done_callback(on_end)
        return task

    async def until_served(self) -> None:
        """Returns when every member serves. Raises StackFailed."""
        for member in self.members:
            await self._or_failure(member.served.wait())

    async def _or_failure(self, awaitable: Coroutine[None, None, object]) -> None:
        task = asyncio.create_task(awaitable)
        await first_of(task, self.failed)
        if self.failed.done():
            task.cancel()
            raise self.failed.result()

    async def stop(self, roles: Iterable[str], *, timeout_s: float) -> None:
        """Ends the members of each role together, role after role; kills what takes too long."""
        for role in roles:
            of_role = [member for member in self.members if member.spec.role == role]
            await asyncio.gather(*(self._stop_member(member, timeout_s) for member in of_role))

    def hang_up(self, role: str) -> None:
        """SIGHUP to the members of a role: their files have changed."""
        for member in self.members:
            if member.spec.role == role and member.process is not None:
                member.process.hang_up()

    async def kill(self) -> None:
        """Ends all members now."""
        for member in self.members:
            member.stop_asked.set()
        processes = [member.process for member in self.members if member.process]
        await asyncio.gather(*(process.kill() for process in processes))
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    async def _stop_member(self, member: Member, timeout_s: float) -> None:
        member.stop_asked.set()
        self._change(member, State.STOPPING)
        if member.process:
            await member.process.stop(timeout_s)
        await asyncio.wait([self._keepers[member]])
        self._change(member, State.STOPPED)

    async def _keep(self, member: Member) -> None:
        while not member.stop_asked.is_set():
            try:
                process = member.process = await ChildProcess.start(member.next_spec(), self._log)
            except OSError as error:  # no memory, process or descriptor is left just now
                if not await self._wait_to_start(member, error):
                    return
                continue
            if member.stop_asked.is_set():
                await process.kill()  # asked while it was being started
                return
            member.refused_starts = 0
            self._change(member, State.STARTING)
            code = await self._watch(member, process)
            member.process = None
            if member.stop_asked.is_set():
                process.log_error()
                return
            failure = self._why_give_up(member, code, process.last_words())
            if failure is None or self.failed.done():
                process.log_error()
            else:
                self.failed.set_result(failure)
            if failure is not None:
                self._change(member, State.STOPPED)
                return
            await self._pause(member, code)

    async def _wait_to_start(self, member: Member, error: OSError) -> bool:
        """Whether to try again what the machine refused: who has served is never given up."""
        member.refused_starts += 1
        text = f"cannot be started: {error.strerror or error}"
        if not member.ready and member.refused_starts >= self._restarts.max_failed_starts:
            if not self.failed.done():
                self.failed.set_result(StackFailed(f"{member.spec.name}: {text}"))
            self._change(member, State.STOPPED)
            return False
        self._log(member.spec.name, warning(member.spec, f"{text}; trying again"))
        self._change(member, State.RESTARTING)
        await self._delay(member)
        return True

    async def _watch(self, member: Member, process: ChildProcess) -> int:
        """Follows a process to its end; returns its exit code."""
        await first_of(process.ready, process.exited)
        if process.ready.done() and not process.ready.cancelled():
            member.failed_starts = 0
            member.ready = process.ready.result()
            member.served.set()
            if not member.stop_asked.is_set():
                self._change(member, State.READY)
        else:
            member.failed_starts += 1
        listening = asyncio.create_task(self._end_if_silent(member, process))
        code = await process.exited
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        member.served.clear()
        return code

    async def _look_for_stopped(self) -> None:
        """Ends members of which some process is stopped, for as long as any member is kept."""
        watch = StoppedWatch(self._patience.stopped_s)
        while keepers := [keeper for keeper in self._keepers.values() if not keeper.done()]:
            await asyncio.wait(keepers, timeout=LOOK_EVERY_S)
            processes = {
                member.process.pid: (member, member.process)
                for member in self.members
                if member.process
            }
            try:
                tree = await asyncio.to_thread(ProcessTree.now)
            except OSError:  # no descriptor is left just now: the next look will do
                continue
            for pid, why in watch.look(tree, processes).items():
                self._end_hung(*processes[pid], why)

    async def _end_if_silent(self, member: Member, process: ChildProcess) -> None:
        """Ends a process that serves and answers no more; returns then, or never."""
        if not self._patience.silent_s or not process.ready.done() or process.ready.cancelled():
            return
        [said, *_] = process.ready.result()
        async with health_of(member.spec.role, said) as ask:
            if ask is None:
                return
            await until_silent(ask, self._patience.silent_s)
        if not member.stop_asked.is_set():  # else its time to end is limited already
            why = f"it has not answered its health check for {self._patience.silent_s:g} s"
            self._end_hung(member, process, why)

    def _end_hung(self, member: Member, process: ChildProcess, why: str) -> None:
        """Kills it with all that it started; how it goes on is its keeper's."""
        if process.exited.done():
            return
        self._log(member.spec.name, warning(member.spec, f"{why}: killed"))
        try:
            pids = ProcessTree.now().below(process.pid)  # ranks have sessions of their own
        except OSError:
            pids = [process.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    async def _pause(self, member: Member, code: int) -> None:
        """Waits before the next start, or until it shall stop."""
        member.restarts += 1
        text = f"ended ({describe_exit(code)}); starting it again"
        said = warning if code else info  # somebody has asked it to, and it has ended in order
        self._log(member.spec.name, said(member.spec, text))
        self._change(member, State.RESTARTING)
        await self._delay(member)

    async def _delay(self, member: Member) -> None:
        with contextlib.suppress(TimeoutError):
            delay_s = self._restarts.delay_s(member.failed_starts + member.refused_starts)
            await asyncio.wait_for(member.stop_asked.wait(), delay_s)

    def _why_give_up(self, member: Member, code: int, last_words: str) -> StackFailed | None:
        name = member.spec.name
        if code == NOT_CURABLE and not member.ready:
            return StackFailed(f"{name}: {last_words or 'wrong configuration'}", NOT_CURABLE)
        if member.failed_starts >= self._restarts.max_failed_starts and not member.ready:
            how = f"{name} ended {member.failed_starts} times before it served"
            return StackFailed(f"{how} ({describe_exit(code)}): {last_words}")
        return None

    def _change(self, member: Member, state: State) -> None:
        member.state = state
        self._on_change()


async def first_of(*futures: "asyncio.Future[Any]") -> None:
    """Returns when one of them is done, and leaves the others as they are."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def describe_exit(code: int) -> str:
    """The exit code in words: "exit code 1", "killed by signal 9"."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
