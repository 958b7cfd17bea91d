"""`python -m router` as a process: what it says, how it ends, what it does not import."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.router.conftest import until
from tests.router.fake_scheduler import FakeScheduler

PATIENCE_S = 60


@dataclass
class Process:
    """A running router."""

    process: asyncio.subprocess.Process
    ready: dict[str, Any]

    async def end(self) -> int:
        """Its exit code, when it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@asynccontextmanager
async def running(
    *arguments: str, within: Sequence[str] = (), stderr: IO[bytes] | int | None = None
) -> AsyncIterator[Process]:
    """A router process that serves; `within` is a command that runs it."""
    process = await asyncio.create_subprocess_exec(
        *(*within, sys.executable, "-m", "router", "--port", "0", "--grpc-port", "0"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("quire-ready ")
        yield Process(process, json.loads(line.removeprefix("quire-ready ")))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_serves_without_anybody_and_ends_when_told(model_dir: Path) -> None:
    async with running("--model", str(model_dir), "--scheduler", "127.0.0.1:1") as router:
        ready = router.ready
        assert (ready["role"], ready["pid"]) == ("router", router.process.pid)
        assert ready["metrics"] == f"{ready['address']}/metrics"
        async with httpx.AsyncClient(base_url=ready["address"]) as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 503
        router.process.send_signal(signal.SIGTERM)
        assert await router.end() == 0


async def test_it_finishes_what_runs_before_it_ends(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    scheduler, address = served
    scheduler.hold_at = 2
    async with running("--model", str(model_dir), "--scheduler", address) as router:
        async with httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http:
            await until(lambda: scheduler.num_canaries > 0)
            body = {"prompt": "xyz", "max_tokens": 9}
            asking = asyncio.create_task(http.post("/v1/completions", json=body))
            await until(lambda: bool(scheduler.submits))
            router.process.send_signal(signal.SIGTERM)
            await until_refused(http)
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 503
            assert scheduler.incarnations_left == [1]  # a scheduler that ends, too, waits for it
            scheduler.kill()
            await until(lambda: scheduler.incarnations_left == [1, 2])
            scheduler.hold_at = None
            assert (await asking).json()["choices"][0]["text"] == "xyzxyzxyz"
        assert await router.end() == 0


async def test_requests_are_held_to_the_limits_that_it_was_told(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    scheduler, address = served
    told = ("--limit", "n=2", "--limit", "stop=0")
    async with (
        running("--model", str(model_dir), "--scheduler", address, *told) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        for fields, message in (
            ({"n": 3}, "n is 3; it must be at most 2"),
            ({"stop": "x"}, "stop has 1 strings; it must have at most 0"),
        ):
            response = await http.post("/v1/completions", json={"prompt": "xyz", **fields})
            assert response.status_code == 400
            assert response.json()["error"]["message"] == message
        body = {"prompt": "xyz", "n": 2, "max_tokens": 3}
        assert len((await http.post("/v1/completions", json=body)).json()["choices"]) == 2


async def until_refused(http: httpx.AsyncClient) -> None:
    """Returns when new requests are refused because it drains."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            response = await http.post("/v1/completions", json={"prompt": ""})
            if "draining" in response.json()["error"]["message"]:
                assert response.status_code == 503
                return


async def test_at_the_second_signal_it_says_so_to_those_whom_it_cuts_off(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    """A stream ends with an error event and no [DONE], a whole answer is a 503; the process ends
    long before its drain timeout."""
    scheduler, address = served
    scheduler.hold_at = 2
    async with (
        running("--model", str(model_dir), "--scheduler", address) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        body = {"prompt": "xyz", "max_tokens": 9}
        whole = asyncio.create_task(http.post("/v1/completions", json=body))
        streamed = asyncio.create_task(http.post("/v1/completions", json=body | {"stream": True}))
        beams = asyncio.create_task(
            http.post("/v1/completions", json=body | {"use_beam_search": True, "n": 2})
        )
        await until(lambda: len(scheduler.submits) >= 4)
        router.process.send_signal(signal.SIGTERM)
        await until_refused(http)
        router.process.send_signal(signal.SIGTERM)
        assert await router.end() == 0
        message = "the server had to stop before the request was complete"
        for refused_whole in (await whole, await beams):
            assert refused_whole.status_code == 503
            assert refused_whole.json()["error"]["message"] == message
        events = (await streamed).text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == message
        assert "[DONE]" not in (await streamed).text


async def test_the_third_signal_waits_for_nobody(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    scheduler, address = served
    scheduler.hold_at = 2
    async with (
        running("--model", str(model_dir), "--scheduler", address) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        asking = asyncio.create_task(http.post("/v1/completions", json={"prompt": "xyz"}))
        await until(lambda: bool(scheduler.submits))
        for _ in range(3):
            router.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)  # two that are pending at once are one to the kernel
        assert await router.end() in (0, 1)  # the second may have been enough
        with contextlib.suppress(httpx.TransportError):
            assert (await asking).status_code == 503


async def test_what_runs_past_the_drain_timeout_is_cut_off(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    scheduler, address = served
    scheduler.hold_at = 2
    told = ("--model", str(model_dir), "--scheduler", address, "--drain-timeout", "0.2")
    async with (
        running(*told) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        asking = asyncio.create_task(http.post("/v1/completions", json={"prompt": "xyz"}))
        await until(lambda: bool(scheduler.submits))
        router.process.send_signal(signal.SIGTERM)
        assert (await asking).status_code == 503
        assert await router.end() == 0


async def test_a_beam_search_goes_on_while_it_drains(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    """Each of its steps is a request to the scheduler, and none of them a new one of a client."""
    scheduler, address = served
    async with (
        running("--model", str(model_dir), "--scheduler", address) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        body = {"prompt": "xyz", "use_beam_search": True, "n": 2, "max_tokens": 60}
        asking = asyncio.create_task(http.post("/v1/completions", json=body))
        await until(lambda: bool(scheduler.submits))
        router.process.send_signal(signal.SIGTERM)
        assert (await asking).json()["usage"]["completion_tokens"] == 120
        assert await router.end() == 0


def refused(*arguments: str) -> str:
    """The error line of a router that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "router", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


def test_a_limit_beyond_what_the_scheduler_takes(model_dir: Path) -> None:
    line = refused("--model", str(model_dir), "--limit", "n=129")
    assert line == "error: limit n is 129; it must be at most 128"


def test_an_empty_api_key_does_not_open_the_router(model_dir: Path) -> None:
    line = refused("--model", str(model_dir), "--api-key", "")
    assert line == "error: --api-key is ''; it must be at least 1 character, or left out"


def test_a_model_directory_that_does_not_exist() -> None:
    assert refused("--model", "/nowhere") == "error: model directory /nowhere does not exist"


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_port_in_use(model_dir: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--port": "0", "--grpc-port": "0"} | {flag: str(port)}
        arguments = [word for pair in ports.items() for word in pair]
        line = refused("--model", str(model_dir), *arguments)
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert "in use" in line


@pytest.mark.parametrize("flag", ["--uds", "--grpc-listen"])
@pytest.mark.parametrize("listens", [True, False])
def test_a_unix_socket_in_use(model_dir: Path, tmp_path: Path, flag: str, listens: bool) -> None:
    """Another router may be there: nobody's socket is taken away. Nor is a file."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as taken:
        if listens:
            taken.bind(str(path))
            taken.listen()
        else:
            path.write_text("precious")
        address = str(path) if flag == "--uds" else f"unix:{path}"
        arguments = ("--model", str(model_dir), "--port", "0", "--grpc-port", "0", flag, address)
        reason = "it is in use" if listens else "it is no socket"
        assert refused(*arguments) == f"error: cannot listen on {path}: {reason}"
    assert path.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--port", "0"], "--reuse-port needs --port and --grpc-port"),
        (["--grpc-port", "0"], "--reuse-port needs --port and --grpc-port"),
        (["--uds", "/nowhere/socket"], "--reuse-port shares TCP ports"),
        (["--grpc-listen", "unix:/nowhere/socket"], "--reuse-port shares TCP ports"),
        ([], "--reuse-port needs --metrics-port"),
        (["--max-stored-bytes", "1000"], "--max-stored-bytes is 1000; with --reuse-port it must"),
    ],
)
def test_what_cannot_be_shared(model_dir: Path, arguments: list[str], reason: str) -> None:
    line = refused("--model", str(model_dir), "--reuse-port", *arguments)
    assert line.startswith(f"error: {reason}")


def test_a_port_is_shared_only_with_who_shares_it(model_dir: Path) -> None:
    shared = ("--model", str(model_dir), "--reuse-port", "--metrics-port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused(*shared, "--port", port, "--grpc-port", port)
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}")


def test_a_metrics_port_in_use(model_dir: Path) -> None:
    free = ("--model", str(model_dir), "--port", "0", "--grpc-port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused(*free, "--metrics-port", port)
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}: ")
    assert line.endswith("; --metrics-port names another port for metrics (0: any free one)")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, router.__main__, router.server\n"
        "heavy = {'torch', 'transformers', 'numba', 'scheduler', 'worker', 'kernels', 'quire'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S, check=False)
    assert done.returncode == 0
