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
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from gateway.errors import ModelError
from gateway.keys import ApiKeys, Keys
from gateway.model import Model, load_model
from router.backend import Backend
from router.background import BackgroundRuns
from router.ending import Signals, drain, see_off, until_told
from router.engine import Engine
from router.http_server import HttpServer
from router.link import Link
from router.listeners import ConfigurationError, bind_grpc, http_sockets
from router.metrics import Metrics
from router.permits import Permits
from router.readiness import Readiness
from router.renewal import Renewal
from router.response_store import ResponseStore
from router.service import create_server
from router.settings import Settings
from router.tls import ServerTls

_UPLOADS_PER_REQUEST = 4
"""Bodies that may be read at once, per request that may be in flight: few are slow."""

_log = logging.getLogger(__name__)


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
    num_connections: Callable[[], int]
    """On which somebody may ask over HTTP."""
    renewal: Renewal
    tasks: tuple[asyncio.Task[None], ...]
    """None of them ends before the router does, unless something is wrong."""


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Raises ConfigurationError."""
    async with listening(settings) as router:
        signals = Signals(router.renewal.renew)
        gc.collect()
        gc.freeze()  # what exists now stays; the collector need not look at it again
        _announce(router)
        await until_told(signals.told, router.tasks)
        ends_at = time.monotonic() + settings.drain_timeout_s
        if settings.reuse_port and signals.goes_alone:
            router.leave()
            await see_off(
                router.backend,
                router.num_connections,
                settings.drain_timeout_s,
                signals.told_again,
            )
        await drain(router.backend, ends_at - time.monotonic(), signals.told_again)


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
    keys, tls = settings.read_keys(), ServerTls(settings.tls) if settings.tls else None
    backend = create_backend(settings, model, keys)
    # In containers of a name, all are process 1; and one that is started again is another one.
    name = settings.router_id or f"{socket.gethostname()}-{os.getpid()}"
    router_id = f"{name}-{secrets.token_hex(4)}"
    apart = settings.keeps_apart(keys)
    link = Link(
        settings.scheduler, router_id, backend.engine, settings.trust, keeps_tenants_apart=apart
    )
    backend.engine.uplink = link
    renewal = Renewal(settings, backend.keys, backend.metrics, link, tls)
    with http_sockets(settings.addresses) as bound:
        grpc_server = create_server(backend, reuse_port=settings.reuse_port)
        grpc_address = bind_grpc(
            grpc_server, settings.grpc_listen, tls.credentials() if tls else None
        )
        http_server = HttpServer(backend, settings.cors, settings.hosts, tls)
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
            yield Router(
                backend,
                bound.address,
                bound.metrics,
                grpc_address,
                leave,
                lambda: http_server.num_connections,
                renewal,
                tasks,
            )
        finally:
            http_server.end()
            await grpc_server.stop(grace=1.0)
            await asyncio.wait([serving])
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            backend.close()


def create_backend(settings: Settings, model: Model, keys: Keys) -> Backend:
    """The router without its fronts and its link."""
    permits = Permits(settings.max_in_flight, "requests are in flight")
    responses = ResponseStore(settings.max_stored_bytes, settings.response_ttl_s)
    metrics = Metrics(model.name, permits, responses, keys)
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
        keys=ApiKeys(keys),
        seeds=random.Random(settings.seed),
        version=_version(),
        started_at=int(time.time()),
        shared_port=settings.port if settings.reuse_port else None,
    )


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
