"""The scheduler as a process: listen, serve, drain, leave.

On SIGTERM or SIGINT it drains: new requests are refused, accepted ones go on up to a limit, then
the streams end. A second signal ends it at once. Nothing is lost with it: workers keep their
weights and dial until the next scheduler is there, and routers submit to it again what the limit
cut off.
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

from protos.trust import Trust
from scheduler.cell import Cell
from scheduler.core.config import CoreConfig
from scheduler.core.scheduler import Scheduler
from scheduler.metrics import MetricsServer
from scheduler.service import GrpcServer, PortTaken

logger = logging.getLogger(__name__)

_TICK_S = 1.0
_FAREWELL_S = 5.0
"""How long peers may take to hear that their streams have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """What the command line says."""

    listen: tuple[str, ...]
    admin_listen: str
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
        self.trust.check_reach("--admin-listen", self.admin_listen)


async def run(config: ProcessConfig) -> None:
    """Serves until told to stop. Raises PortTaken when an address is not to be had."""
    stop = _stop_on_signals()
    cell = Cell(Scheduler(config.core), step_timeout_s=config.step_timeout_s)
    server = GrpcServer.of_cell(cell, config.trust)
    addresses = [_listen(server, address) for address in config.listen]
    admin_server = GrpcServer.of_admin(cell, config.trust)
    admin = _listen(admin_server, config.admin_listen)
    metrics = _serve_metrics(cell, config)
    await server.start()
    await admin_server.start()
    ticking = asyncio.create_task(_tick(cell))
    _freeze()
    _say_ready(addresses[0], admin, metrics.url)
    logger.info("listening on %s; for operators on %s", ", ".join(addresses), admin)
    await stop.wait()
    await _drain(cell, server, config.drain_timeout_s)
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
        raise PortTaken(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error


async def _tick(cell: Cell) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        cell.tick()


def _freeze() -> None:
    """What exists now stays: the collector need not look at it again, least of all in a step."""
    gc.collect()
    gc.freeze()


def _say_ready(address: str, admin: str, metrics_url: str) -> None:
    ready = {
        "role": "scheduler",
        "pid": os.getpid(),
        "address": address,
        "admin": admin,
        "metrics": metrics_url,
    }
    sys.stdout.write(f"quire-ready {json.dumps(ready)}\n")
    sys.stdout.flush()


async def _drain(cell: Cell, server: GrpcServer, timeout_s: float) -> None:
    logger.info("draining for at most %g s", timeout_s)
    await server.announce_end()
    cell.start_draining()
    try:
        async with asyncio.timeout(timeout_s):
            await cell.wait_drained()
    except TimeoutError:
        logger.warning("some sequences are unfinished: their routers will submit them again")
