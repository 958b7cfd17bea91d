"""The whole of Quire on this machine: a scheduler, workers and routers, over unix sockets.

    router × processes ──unix──▶ scheduler ◀──unix── worker × replicas (· ranks)

Workers and routers dial and redial, so all start at once, and any of them may be restarted alone.
The stack is ready when the router says that a token has really been generated. It ends in the
order in which work flows, so that each finds its successor still there: router (answers what it
has accepted), workers, scheduler.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

from quire.door import TcpDoor
from quire.errors import ConfigurationError, RequestFailed, StackFailed
from quire.hangs import Patience
from quire.http import Endpoint
from quire.models import ResolvedModel
from quire.options import StackOptions
from quire.paths import make_run_dir
from quire.ports import LOOPBACK, AskedPort, MetricsPorts, check_free, hold_shared
from quire.preflight import check_machine, check_model
from quire.process import ChildSpec, LogSink, log_line, quire_command
from quire.registry import ProcessRecord, StackRecord, publish, start_ticks, withdraw
from quire.supervisor import Member, State, Supervisor

STOP_ORDER = ("router", "worker", "scheduler")
READY_POLL_S = 0.1
FAREWELL_S = 5.0
"""What a process gets beyond its drain before it is killed."""
CUT_S = 3.0
"""What a router that was told twice gets to tell its clients."""


def check_ports(options: StackOptions, door: TcpDoor | None) -> None:
    """Raises ConfigurationError for a port that is not free, before anything is started."""
    asked = door.ports if door else []
    if (first := options.metrics_port) is not None:
        asked.append(AskedPort("--metrics-port", LOOPBACK, first))
        asked += [
            AskedPort(f"{_worker(index)}'s metrics port", LOOPBACK, first + 1 + index)
            for index in range(options.num_workers)
        ]
        asked += [
            AskedPort(
                f"{_router(index)}'s metrics port",
                LOOPBACK,
                first + 1 + options.num_workers + index,
            )
            for index in range(_num_own_ports(options, door))
        ]
    check_free(asked)


class Stack:
    """A supervised stack; one event loop owns it, on a thread that outlives it."""

    def __init__(
        self,
        model: ResolvedModel,
        options: StackOptions,
        *,
        door: TcpDoor | None = None,
        log: LogSink = lambda name, line: None,
    ) -> None:
        """Answers at `door`, or without one only on unix sockets. Nothing runs before `start`."""
        _check_routers(options, door)
        check_machine(options)
        check_model(options, model.path)
        self.name = options.served_model_name or model.name
        self.run_dir = make_run_dir()
        self.url = door.url if door else f"http+unix://{self.run_dir}/http.sock"
        self.grpc = door.grpc if door else f"unix:{self.run_dir}/grpc.sock"
        self.scheduler = f"unix:{self.run_dir}/scheduler.sock"
        self.admin = f"unix:{self.run_dir}/admin.sock"
        self.started_at = time.time()
        self._model = model
        self._options = options
        self._door = door
        patience = Patience.of(options.hang_timeout)
        self._supervisor = Supervisor(log=log, on_change=self._publish, patience=patience)
        self._log = log
        self._is_unrecorded = False
        """The record could not be written when it was last tried."""
        self._on_end = contextlib.ExitStack()

    @property
    def members(self) -> list[Member]:
        """The processes, scheduler first."""
        return self._supervisor.members

    @property
    def failed(self) -> "asyncio.Future[StackFailed]":
        """Resolved when a process cannot be kept running: stop the stack."""
        return self._supervisor.failed

    async def start(self) -> None:
        """Starts every process. Raises ConfigurationError if a port is taken."""
        check_ports(self._options, self._door)
        options = self._options
        num_own = _num_own_ports(options, self._door)
        ports = MetricsPorts(options.metrics_port, 1 + options.num_workers + num_own)
        self._on_end.callback(ports.close)
        if options.router_processes > 1 and self._door is not None:
            self._on_end.callback(hold_shared(self._door.ports).close)
        for spec in self._specs(ports.numbers):
            self._supervisor.add(spec)
        self._publish()

    async def until_ready(self) -> None:
        """Returns when a token has been generated end to end. Raises StackFailed."""
        await self._supervisor.until_served()
        for url in self._router_urls():
            await self._until_router_ready(Endpoint(url))

    async def _until_router_ready(self, endpoint: Endpoint) -> None:
        while not self.failed.done():
            with contextlib.suppress(RequestFailed):
                status, _ = await endpoint.get("/ready")
                if status == 200:
                    return
            await asyncio.wait([self.failed], timeout=READY_POLL_S)
        raise self.failed.result()

    def _router_urls(self) -> list[str]:
        """Of each: where it has a port of its own, that one."""
        if not _num_own_ports(self._options, self._door):
            return [self.url]
        routers = [member for member in self.members if member.spec.role == "router"]
        metrics = [member.ready[0].metrics or "" for member in routers]
        return [url.removesuffix("/metrics") for url in metrics]

    def renew(self) -> None:
        """The routers read their keys and certificates again."""
        self._supervisor.hang_up("router")

    async def stop(self) -> None:
        """Ends every process; requests in flight may take `drain_timeout` to finish."""
        limit_s = self._options.drain_timeout + FAREWELL_S
        try:
            await self._supervisor.stop(STOP_ORDER, timeout_s=limit_s)
        finally:
            await self.kill()

    async def cut(self) -> None:
        """Ends every process at once, also while `stop` waits: requests in flight end with an
        error, which their clients are told."""
        await self._supervisor.stop(("router",), timeout_s=CUT_S)
        await self.kill()

    async def kill(self) -> None:
        """Ends every process now."""
        await self._supervisor.kill()
        self._on_end.close()
        withdraw(str(self.run_dir))
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def record(self) -> StackRecord:
        """What `quire ps` shows."""
        return StackRecord(
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
            model=self.name,
            url=self.url,
            grpc=self.grpc,
            scheduler=self.scheduler,
            admin=self.admin,
            run_dir=str(self.run_dir),
            started_at=self.started_at,
            processes=tuple(
                record for member in self.members for record in _process_records(member)
            ),
        )

    def _publish(self) -> None:
        """For `quire ps`; who serves goes on serving, whether or not it can be written down."""
        if not self.run_dir.exists():
            return
        try:
            publish(self.record())
        except OSError as error:
            if not self._is_unrecorded:
                text = f"quire ps will not know of changes: {error}"
                self._log("supervisor", log_line("supervisor", "warning", text))
            self._is_unrecorded = True
        else:
            self._is_unrecorded = False

    def _specs(self, metrics_ports: Sequence[int]) -> list[ChildSpec]:
        share: tuple[str, ...] = ()
        if self._options.replicas > 1 and self._options.threads is None:
            share = ("--threads", str(_cores_per_worker(self._options.num_workers)))
        first, *others = metrics_ports
        workers, num_ranks = [], self._options.num_ranks
        for index in range(self._options.replicas):
            own = ["--replica-id", f"replica-{index}"]
            for port in others[index * num_ranks : (index + 1) * num_ranks]:
                own += ["--metrics-port", str(port)]
            workers.append(self._spec("worker", _worker(index), *own, *share))
        routers = self._router_specs(others[self._options.num_workers :])
        return [self._scheduler_spec(first), *workers, *routers]

    def _scheduler_spec(self, metrics_port: int) -> ChildSpec:
        arguments = self._options.arguments("scheduler")
        listen = ("--listen", self.scheduler, "--admin-listen", self.admin)
        ports = ("--metrics-port", str(metrics_port))
        command = quire_command("scheduler", *listen, *ports, *arguments)
        return ChildSpec("scheduler", "scheduler", command)

    def _router_specs(self, own_ports: Sequence[int]) -> list[ChildSpec]:
        """One, or as many as have ports of their own."""
        if not own_ports:
            return [self._router_spec("router")]
        if self._options.router_processes == 1:
            return [self._router_spec("router", "--metrics-port", str(own_ports[0]))]
        specs = (
            self._router_spec(_router(index), "--reuse-port", "--metrics-port", str(port))
            for index, port in enumerate(own_ports)
        )
        # All are stopped together: each stays at the shared port, to say so, until it has ended.
        return [replace(spec, stop_signal=signal.SIGINT) for spec in specs]

    def _router_spec(self, name: str, *sharing: str) -> ChildSpec:
        environment: tuple[tuple[str, str], ...] = ()
        if self._door is None:
            where = ["--uds", f"{self.run_dir}/http.sock", "--grpc-listen", self.grpc]
        else:
            where = self._door.arguments
            environment = self._door.environment
        own = ("--router-id", name, *where, *sharing)
        return self._spec("router", name, *own, environment=environment)

    def _spec(
        self, role: str, name: str, *arguments: str, environment: tuple[tuple[str, str], ...] = ()
    ) -> ChildSpec:
        """A process that loads the model and dials the scheduler."""
        served_name = () if self._options.served_model_name else ("--served-model-name", self.name)
        common = ("--model", str(self._model.path), "--scheduler", self.scheduler)
        options = self._options.arguments(role)
        command = quire_command(role, *common, *served_name, *arguments, *options)
        return ChildSpec(name, role, command, environment)


def _worker(index: int) -> str:
    return f"worker-{index}"


def _router(index: int) -> str:
    return f"router-{index}"


def _num_own_ports(options: StackOptions, door: TcpDoor | None) -> int:
    """Routers that answer on a port of their own on loopback, too: where they share one, to be told
    apart; where theirs speaks TLS, because no certificate is for loopback."""
    if options.router_processes > 1 or (door is not None and door.ssl_certfile is not None):
        return options.router_processes
    return 0


def _check_routers(options: StackOptions, door: TcpDoor | None) -> None:
    """Raises ConfigurationError for routers that cannot share."""
    count = options.router_processes
    if count > 1 and door is None:
        raise ConfigurationError(
            f"router_processes is {count}; without a port to share it must be 1"
        )
    if count > 1 and options.max_stored_bytes:
        raise ConfigurationError(
            f"max_stored_bytes is {options.max_stored_bytes}; with {count} router processes it "
            "must be 0: a client that comes back may meet another one"
        )


def _cores_per_worker(replicas: int) -> int:
    """Workers that each take every core slow each other down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // replicas)


def _process_records(member: Member) -> list[ProcessRecord]:
    """Of a process; of ranks that serve, one each, after that of what started them."""
    process, is_ready = member.process, member.state is State.READY
    ready = member.ready[0] if member.ready else None
    record = ProcessRecord(
        name=member.spec.name,
        role=member.spec.role,
        pid=process.pid if process else None,
        address=ready.address if ready else "",
        metrics=ready.metrics if ready and is_ready else None,
        state=member.state.value,
        restarts=member.restarts,
        started_at=process.started_at if process else None,
    )
    if len(member.ready) < 2 or not is_ready:
        return [record]
    ranks = [
        replace(record, name=f"{record.name}[{rank}]", pid=said.pid, metrics=said.metrics)
        for rank, said in enumerate(member.ready)
    ]
    return [replace(record, role="launcher", metrics=None), *ranks]
