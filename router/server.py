"""The process: both fronts on their addresses, the link, and an orderly end.

    listen (HTTP, gRPC) → say so → serve until told to end → refuse new requests → finish the
    running ones, up to the drain timeout or until told again → close

It listens to the last: whoever comes meanwhile hears why not, and when to try again.

It does not wait for scheduler or worker: they may come and go, and /ready says whether they are
here.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvicorn

from gateway.cors import CorsPolicy
from gateway.errors import ModelError
from gateway.keys import ApiKeys
from gateway.limits import DEFAULT_LIMITS, RequestLimits
from gateway.model import Model, load_model
from protos import flags
from protos.trust import NO_TRUST, Trust
from router.app import create_app
from router.backend import Backend
from router.background import BackgroundRuns
from router.engine import Engine
from router.http_protocol import BoundedHttpProtocol
from router.link import Link
from router.listeners import Addresses, ConfigurationError, bind_grpc, http_sockets
from router.metrics import Metrics
from router.permits import Permits
from router.readiness import Readiness
from router.response_store import ResponseStore
from router.service import create_server
from router.tls import TlsFiles

_UPLOADS_PER_REQUEST = 4
"""Bodies that may be read at once, per request that may be in flight: few are slow."""

_LAST_WORDS_S = 1.0
"""In which requests that are cut off tell their clients so."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What one router process was told to be."""

    model: Path
    scheduler: str
    """host:port or unix:/path."""
    served_model_name: str | None
    """None: the directory's name."""
    chat_template: Path | None
    """None: the directory's own."""
    tool_call_parser: str
    reasoning_parser: str
    """Names of formats, see `gateway.parsing.formats`."""
    host: str
    port: int
    """0: any free one."""
    uds: Path | None
    """A Unix socket instead of host and port."""
    grpc_listen: str
    """host:port (0: any free one) or unix:/path."""
    max_body_bytes: int
    max_in_flight: int
    drain_timeout_s: float
    scheduler_timeout_s: float
    seed: int | None
    """Of the seeds given to requests that bring none; None: they are random."""
    max_stored_bytes: int = flags.MAX_STORED_BYTES.default
    """Of responses that are kept for clients to come back to; 0 keeps none."""
    response_ttl_s: float = flags.RESPONSE_TTL.default
    """How long they are kept."""
    cors: CorsPolicy | None = None
    """None: closed."""
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What clients must send one of, by name; without any, everybody may ask."""
    shares_prefixes: bool = False
    """Several keys have one prefix cache."""
    tls: TlsFiles | None = None
    """Towards clients, on the main port and gRPC's."""
    trust: Trust = NO_TRUST
    """What the scheduler knows us by, and we it."""
    limits: RequestLimits = DEFAULT_LIMITS
    """What one request may ask for."""
    reuse_port: bool = False
    """Other processes that say so too answer on the same ports."""
    metrics_port: int | None = None
    """A port on loopback that is this process's own."""

    def __post_init__(self) -> None:
        if self.reuse_port and self.max_stored_bytes:
            raise ConfigurationError(
                f"--max-stored-bytes is {self.max_stored_bytes}; with --reuse-port it must be 0: "
                "a client that comes back may meet another process"
            )

    @property
    def addresses(self) -> Addresses:
        """Where it shall answer."""
        return Addresses(
            self.host,
            self.port,
            self.uds,
            self.grpc_listen,
            self.reuse_port,
            self.metrics_port,
            tls=self.tls is not None,
        )


@dataclass(frozen=True, slots=True)
class Router:
    """A router that listens."""

    backend: Backend
    address: str
    """http://host:port, https://host:port or unix:/path."""
    metrics: str | None
    """Where this process alone answers /metrics; None: nowhere on TCP."""
    grpc_address: str
    leave: Callable[[], None]
    """New connections go to whoever shares the ports, from now on."""
    tasks: tuple[asyncio.Task[None], ...]
    """None of them ends before the router does, unless something is wrong."""


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Raises ConfigurationError."""
    async with listening(settings) as router:
        signals = _Signals()
        gc.collect()
        gc.freeze()  # what exists now stays; the collector need not look at it again
        _announce(router)
        await _until_told(signals.told, router.tasks)
        if settings.reuse_port and signals.goes_alone:
            router.leave()
        await _drain(router.backend, settings.drain_timeout_s, signals.told_again)


@contextlib.asynccontextmanager
async def listening(settings: Settings) -> AsyncIterator[Router]:
    """A router on its addresses. Raises ConfigurationError."""
    try:
        model = load_model(
            settings.model,
            settings.served_model_name,
            chat_template=settings.chat_template,
            tool_call_parser=settings.tool_call_parser,
            reasoning_parser=settings.reasoning_parser,
            limits=settings.limits,
        )
    except ModelError as error:
        raise ConfigurationError(str(error)) from error
    backend = create_backend(settings, model)
    router_id = f"{socket.gethostname()}-{os.getpid()}"
    apart = len(settings.keys) > 1 and not settings.shares_prefixes
    link = Link(
        settings.scheduler, router_id, backend.engine, settings.trust, keeps_tenants_apart=apart
    )
    backend.engine.uplink = link
    with http_sockets(settings.addresses) as bound:
        grpc_server = create_server(backend, reuse_port=settings.reuse_port)
        grpc_address = bind_grpc(
            grpc_server,
            settings.grpc_listen,
            settings.tls.credentials() if settings.tls else None,
        )
        http_server = _HttpServer(backend, settings.cors, settings.tls)
        await grpc_server.start()
        serving = asyncio.create_task(http_server.serve(sockets=bound.all), name="http")
        tasks = (
            serving,
            asyncio.create_task(link.run(), name="link"),
            asyncio.create_task(backend.readiness.run(), name="readiness"),
        )
        leaving: list[asyncio.Task[None]] = []

        def leave() -> None:
            http_server.leave()
            grace_s = settings.drain_timeout_s + 1
            leaving.append(asyncio.create_task(grpc_server.stop(grace_s)))

        try:
            await http_server.listening.wait()
            yield Router(backend, bound.address, bound.metrics, grpc_address, leave, tasks)
        finally:
            http_server.end()
            await grpc_server.stop(grace=1.0)
            await asyncio.wait([serving])
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            backend.close()


def create_backend(settings: Settings, model: Model) -> Backend:
    """The router without its fronts and its link."""
    permits = Permits(settings.max_in_flight, "requests are in flight")
    responses = ResponseStore(settings.max_stored_bytes, settings.response_ttl_s)
    metrics = Metrics(model.name, permits, responses, settings.keys)
    engine = Engine(model, metrics, scheduler_timeout_s=settings.scheduler_timeout_s)
    return Backend(
        model=model,
        engine=engine,
        permits=permits,
        uploads=Permits(_UPLOADS_PER_REQUEST * settings.max_in_flight, "bodies are being read"),
        readiness=Readiness(engine),
        metrics=metrics,
        responses=responses,
        background=BackgroundRuns(engine, responses),
        max_body_bytes=settings.max_body_bytes,
        keys=ApiKeys(settings.keys),
        seeds=random.Random(settings.seed),
        version=_version(),
        started_at=int(time.time()),
        shared_port=settings.port if settings.reuse_port else None,
    )


class _HttpServer(uvicorn.Server):
    """uvicorn, with the signals left to us, and quiet while nothing happens."""

    def __init__(self, backend: Backend, cors: CorsPolicy | None, tls: TlsFiles | None) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(backend, cors),
                http=BoundedHttpProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        self.listening = asyncio.Event()
        self._ending = asyncio.Event()
        self._tls = tls.context() if tls else None

    def end(self) -> None:
        """No longer listens; what is being answered gets a moment."""
        self.should_exit = True
        self._ending.set()

    def leave(self) -> None:
        """No longer listens on the first of its sockets."""
        self.servers[0].close()

    async def main_loop(self) -> None:
        """Wakes once a second, for the date in the headers; uvicorn's own does ten times."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ending.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen: on the first with TLS, if there is any; this process's own port is
        on loopback."""
        assert sockets is not None
        self.config.ssl = self._tls
        await super().startup(sockets[:1])
        main = self.servers
        self.config.ssl = None
        await super().startup(sockets[1:])
        self.servers = main + self.servers
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does not."""
        yield


class _Signals:
    """SIGTERM and SIGINT: the first, the second; a third ends the process at once.

    Of routers that share ports, one that hears SIGTERM goes alone, and leaves new connections to
    the others. SIGINT says that all of them end, so that somebody must be there to say so.
    """

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.told_again = asyncio.Event()
        self.goes_alone = True
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._hear, number)

    def _hear(self, number: signal.Signals) -> None:
        if self.told_again.is_set():
            os._exit(1)
        if self.told.is_set():
            self.told_again.set()
        else:
            self.goes_alone = number is signal.SIGTERM
            self.told.set()


async def _until_told(told: asyncio.Event, running: Sequence[asyncio.Task[None]]) -> None:
    """Returns when told to end; raises what ended a task that should run for ever."""
    waiting = asyncio.create_task(told.wait())
    done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()
        raise RuntimeError(f"{task.get_name()} ended by itself")


async def _drain(backend: Backend, timeout_s: float, told_again: asyncio.Event) -> None:
    """New requests are refused from now on; running ones get their time, unless told again."""
    backend.engine.draining = True
    if backend.permits.num_taken:
        _log.info("draining: %s", _in_flight(backend))
    idle = asyncio.create_task(backend.permits.idle())
    hurry = asyncio.create_task(told_again.wait())
    await asyncio.wait((idle, hurry), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if not idle.done():
        why = "told again to end" if told_again.is_set() else f"{timeout_s:g} s are over"
        _log.warning("%s: %s cut off", why, _in_flight(backend))
        backend.engine.end_all("the server had to stop before the request was complete")
        await asyncio.wait((idle,), timeout=_LAST_WORDS_S)
    idle.cancel()
    hurry.cancel()


def _in_flight(backend: Backend) -> str:
    count = backend.permits.num_taken
    return f"{count} request{'s' * (count != 1)} in flight"


def _announce(router: Router) -> None:
    """The one line for whoever started us."""
    ready = {
        "role": "router",
        "pid": os.getpid(),
        "address": router.address,
        "grpc": router.grpc_address,
        "metrics": router.metrics,
    }
    print(f"quire-ready {json.dumps(ready)}", flush=True)
    _log.info("serving HTTP on %s and gRPC on %s", router.address, router.grpc_address)


def _version() -> str:
    try:
        return version("quire")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+source"
