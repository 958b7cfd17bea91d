"""Processes that live and do nothing, and what the supervisor does about them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from quire import hangs, supervisor
from quire.hangs import LOOK_EVERY_S, Patience, ProcessTree, StoppedWatch, until_silent
from quire.process import ChildSpec, quire_command
from quire.supervisor import State
from tests.ports import free_port
from tests.quire.test_supervisor import QUICK, SERVE_UNTIL_TERM, Watched, child

pytestmark = pytest.mark.chaos

QUICKLY_S = 0.05
STOPPED_AT_ONCE = Patience(stopped_s=2 * QUICKLY_S, silent_s=0)
SILENT_SOON = Patience(stopped_s=0, silent_s=2.0)

WITH_A_HELPER = """
import subprocess, sys
command = [sys.executable, "-c", "import sys; sys.stdin.read()"]  # ends after us
helper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
print(f"helper {helper.pid}", file=sys.stderr, flush=True)
"""

ANSWER = """
import asyncio, json, sys, time
from aiohttp import web

where = sys.argv[1]

async def health(request):
    return web.Response()

async def wedge(request):
    asyncio.get_running_loop().call_later(0.01, time.sleep, 3600)
    return web.Response()

async def main():
    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/wedge", wedge)])
    runner = web.AppRunner(app)
    await runner.setup()
    if where.isdigit():
        await web.TCPSite(runner, "127.0.0.1", int(where)).start()
        said = {"address": "elsewhere", "metrics": f"http://127.0.0.1:{where}/metrics"}
    else:
        await web.UnixSite(runner, where).start()
        said = {"address": f"unix:{where}", "metrics": None}
    print("quire-ready " + json.dumps(said), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def quick(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """Ends what is stopped as soon as it has looked a few times."""
    for module in (hangs, supervisor):
        monkeypatch.setattr(module, "LOOK_EVERY_S", QUICKLY_S)
    watched = Watched(QUICK, STOPPED_AT_ONCE)
    yield watched
    await watched.supervisor.kill()


@pytest.fixture
async def listening(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """Asks often."""
    monkeypatch.setattr(hangs, "ASK_EVERY_S", QUICKLY_S)
    watched = Watched(QUICK, SILENT_SOON)
    yield watched
    await watched.supervisor.kill()


# --- stopped -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_stopped_child_is_started_anew(quick: Watched) -> None:
    member = quick.supervisor.add(child(SERVE_UNTIL_TERM))
    await quick.supervisor.until_served()
    assert member.process is not None
    first = member.process.pid
    os.kill(first, signal.SIGSTOP)
    await quick.until(lambda: member.restarts == 1 and member.state is State.READY)
    said = [line for line in quick.lines if f"warning process {first} has been stopped" in line]
    assert len(said) == 1
    assert said[0].endswith("s: killed")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_child_that_is_stopped_while_it_starts_is_started_anew(quick: Watched) -> None:
    stops_once = "import os, signal, sys\nos.kill(os.getpid(), signal.SIGSTOP)"
    member = quick.supervisor.add(child(stops_once))
    await quick.until(lambda: member.restarts == 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_child_goes_with_what_it_started_and_is_stopped(quick: Watched) -> None:
    """As a rank of a worker does, or its transport; such a one leads a session of its own."""
    member = quick.supervisor.add(child(WITH_A_HELPER + SERVE_UNTIL_TERM))
    await quick.supervisor.until_served()
    await quick.until(lambda: any("helper" in line for line in quick.lines))
    [line] = [line for line in quick.lines if "helper" in line]
    helper = int(line.rpartition(" ")[2])
    watch = os.pidfd_open(helper)
    os.kill(helper, signal.SIGSTOP)
    await quick.until(lambda: member.restarts == 1 and member.state is State.READY)
    assert any(f"process {helper} has been stopped" in line for line in quick.lines)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(watch, ended.set)  # readable: it has ended
    await ended.wait()
    asyncio.get_running_loop().remove_reader(watch)
    os.close(watch)


def test_who_is_stopped_for_a_moment_is_not_meant() -> None:
    watch = StoppedWatch(2 * LOOK_EVERY_S)
    stopped = ProcessTree({1: "S", 2: "T"}, {1: [2]})
    goes_on = ProcessTree({1: "S", 2: "R"}, {1: [2]})
    for tree in (stopped, stopped, goes_on, stopped, stopped):
        assert watch.look(tree, [1]) == {}
    seconds = 2 * LOOK_EVERY_S
    assert watch.look(stopped, [1]) == {1: f"process 2 has been stopped for {seconds:g} s"}


def test_who_is_looked_at_with_a_debugger_is_not_meant() -> None:
    watch = StoppedWatch(LOOK_EVERY_S)
    traced = ProcessTree({1: "t"}, {})
    assert [watch.look(traced, [1]) for _ in range(5)] == [{}] * 5


def test_no_time_means_that_nobody_is_ended() -> None:
    assert Patience.of(0) == Patience(0, 0)
    assert Patience.of(1).stopped_s == 1
    assert Patience.of(30) == Patience()


# --- silent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["tcp", "unix"])
async def test_a_router_that_answers_no_more_is_started_anew(
    listening: Watched, tmp_path: Path, on: str
) -> None:
    where = str(free_port()) if on == "tcp" else str(tmp_path / "router.sock")
    spec = ChildSpec("router", "router", (sys.executable, "-c", ANSWER, where))
    member = listening.supervisor.add(spec)
    await listening.supervisor.until_served()
    await asyncio.sleep(1)  # it is asked, and answers
    if on == "tcp":
        session, url = aiohttp.ClientSession(), f"http://127.0.0.1:{where}"
    else:
        session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(where))
        url = "http://localhost"
    async with session:
        await session.get(f"{url}/wedge")
    await listening.until(lambda: member.restarts == 1 and member.state is State.READY)
    why = "router warning it has not answered its health check for 2 s: killed"
    assert any(why in line for line in listening.lines)


async def test_a_scheduler_that_answers_no_more_is_started_anew(
    listening: Watched, tmp_path: Path
) -> None:
    """A real one. What it is: stopped, and nobody looks for that here."""
    where = ("--listen", f"unix:{tmp_path}/scheduler.sock", "--metrics-port", "0")
    member = listening.supervisor.add(
        ChildSpec("scheduler", "scheduler", quire_command("scheduler", *where))
    )
    await listening.supervisor.until_served()
    await asyncio.sleep(1)  # it is asked, and answers
    assert member.process is not None
    os.kill(member.process.pid, signal.SIGSTOP)
    await listening.until(lambda: member.restarts == 1 and member.state is State.READY)
    why = "scheduler warning it has not answered its health check for 2 s: killed"
    assert any(why in line for line in listening.lines)


async def test_only_who_has_answered_can_fall_silent() -> None:
    asked = 0

    async def never() -> bool:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        return True

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(until_silent(never, hangs.PIECE_S), 4 * hangs.PIECE_S)
    assert asked == 1


async def test_an_answer_makes_up_for_what_was_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangs, "ASK_EVERY_S", 0)
    answers = 0

    async def slow() -> bool:
        nonlocal answers
        await asyncio.sleep(1.5 * hangs.PIECE_S)
        answers += 1
        if answers == 5:
            await asyncio.Event().wait()
        return True

    await until_silent(slow, 6 * hangs.PIECE_S)
    assert answers == 5


async def test_who_refuses_leaves_and_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangs, "ASK_EVERY_S", 0)
    answers = iter([True])

    async def refuses() -> bool:
        await asyncio.sleep(0.01)
        return next(answers, False)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(until_silent(refuses, hangs.PIECE_S), 4 * hangs.PIECE_S)
