"""The scheduler as a process: listen, serve, drain, leave.

On SIGTERM or SIGINT it hands over: the streams end once their news is out. Nothing is lost with it:
workers keep their weights and dial until the next scheduler is there, and routers submit to it what
was in flight here. Those that are about to end themselves could not; as long as there are any, up
to a limit, everyone is served as before. A cell that an operator drains is finished first, up to
the same limit: there is no next scheduler. A second signal ends it at once.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass

from protos import flags
from protos.trust import Trust
from scheduler.cell import Cell
from scheduler.core.config import CoreConfig
from scheduler.core.scheduler import Scheduler
from scheduler.guard import Guard
from scheduler.metrics import MetricsServer
from scheduler.service import GrpcServer, PortTaken

logger = logging.getLogger(__name__)

_DEFECT = 1
"""The exit code of a scheduler that has failed: a supervisor starts the next."""
_TICK_S = 1.0
_WORD_S = 0.5
"""How long routers that are told to end together with the scheduler may take to say so."""
_FAREWELL_S = 5.0
"""How long peers may take to hear that their streams have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """What the command line says."""

    listen: tuple[str, ...]
    admin_listen: str | None
    """None: no operator may call."""
    metrics_host: str
    metrics_port: int
    drain_timeout_s: float
    core: CoreConfig
    step_timeout_s: float
    trust: Trust

    def __post_init__(self) -> None:
        """Raises FlagError for an address that strangers could dial."""
        for address in self.listen:
            self.trust.check_reach("--listen", address)
        if self.admin_listen is not None:
            self.trust.check_reach("--admin-listen", self.admin_listen)


async def run(config: ProcessConfig) -> None:
    """Serves until told to stop. Raises PortTaken when an address is not to be had."""
    stop = _stop_on_signals()
    guard = Guard(lambda: os._exit(_DEFECT))
    cell = Cell(Scheduler(config.core), step_timeout_s=config.step_timeout_s, guard=guard)
    server = GrpcServer.of_cell(cell, config.trust)
    addresses = [_listen(server, address) for address in config.listen]
    admin_server = GrpcServer.of_admin(cell, config.trust)
    admin = None if config.admin_listen is None else _listen(admin_server, config.admin_listen)
    metrics = _serve_metrics(cell, config)
    await server.start()
    await admin_server.start()
    ticking = asyncio.create_task(_tick(cell))
    _freeze()
    _say_ready(addresses[0], admin, metrics.url)
    logger.info("listening on %s; for operators on %s", ", ".join(addresses), admin or "nothing")
    await stop.wait()
    await _wait_for_leavers(cell, server, config.drain_timeout_s)
    ticking.cancel()
    cell.end_streams()
    await admin_server.stop(0)
    await server.stop(_FAREWELL_S)  # takes no new stream from now on
    await asyncio.to_thread(metrics.close)
    logger.info("stopped")


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            logger.warning("a second signal: leaving at once")
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


def _listen(server: GrpcServer, address: str) -> str:
    """Binds the address. gRPC would take over the socket file of a living process, so ask first."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(path)
            raise PortTaken(f"cannot listen on {address}: another process does")
    return server.listen(address)


def _serve_metrics(cell: Cell, config: ProcessConfig) -> MetricsServer:
    host, port = config.metrics_host, config.metrics_port
    try:
        return MetricsServer(
            host, port, lambda: list(cell.metrics.families(cell.view(), cell.state()))
        )
    except OSError as error:
        raise PortTaken(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; "
            f"{flags.SCHEDULER_METRICS_PORT.option} names another port (0: any free one)"
        ) from error


async def _tick(cell: Cell) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        cell.guard.run(cell.tick)


def _freeze() -> None:
    """What exists now stays: the collector need not look at it again, least of all in a step."""
    gc.collect()
    gc.freeze()


def _say_ready(address: str, admin: str | None, metrics_url: str) -> None:
    ready = {
        "role": "scheduler",
        "pid": os.getpid(),
        "address": address,
        "admin": admin,
        "metrics": metrics_url,
    }
    sys.stdout.write(f"quire-ready {json.dumps(ready)}\n")
    sys.stdout.flush()


async def _wait_for_leavers(cell: Cell, server: GrpcServer, timeout_s: float) -> None:
    """Returns when nobody is left whose requests the next scheduler would not be given."""
    await server.announce_end()
    try:
        async with asyncio.timeout(timeout_s):
            await (cell.wait_drained() if cell.draining else cell.wait_left(_WORD_S))
    except TimeoutError:
        logger.warning("after %g s some sequences are unfinished: they are cut off", timeout_s)
