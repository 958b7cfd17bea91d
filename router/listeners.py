"""The addresses that a router answers on, bound before anything else starts.

A TCP port belongs to one process, and a second one that asks for it is refused. Only routers that
are each told to share (`--reuse-port`) may have the same ports: the kernel then spreads new
connections over them. What such a process alone must answer, metrics above all, needs a port of its
own beside the shared one.
"""

import contextlib
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from protos import flags

_BACKLOG = 2048
OWN_HOST = "127.0.0.1"
"""Where a process has the port that is its own."""


class ConfigurationError(Exception):
    """Something that a restart cannot cure; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a router shall answer."""

    host: str
    port: int
    """0: any free one."""
    uds: Path | None
    """A Unix socket instead of host and port."""
    grpc_listen: str
    """host:port (0: any free one) or unix:/path."""
    reuse_port: bool = False
    """Other processes that say so too answer on the same ports."""
    metrics_port: int | None = None
    """A port on loopback that is this process's own, beside the one that may be shared."""
    tls: bool = False
    """Spoken on the main port."""

    def __post_init__(self) -> None:
        if self.tls and (self.uds is not None or self.grpc_listen.startswith("unix:")):
            raise ConfigurationError("--ssl-certfile is for TCP ports, and no Unix sockets")
        if not self.reuse_port:
            return
        if self.uds is not None or self.grpc_listen.startswith("unix:"):
            raise ConfigurationError("--reuse-port shares TCP ports, and no Unix sockets")
        if self.port == 0 or self.grpc_listen.endswith(":0"):
            raise ConfigurationError(
                "--reuse-port needs --port and --grpc-port: any free port is nobody else's"
            )
        if self.metrics_port is None:
            raise ConfigurationError(
                "--reuse-port needs --metrics-port: on a shared port nobody knows whose metrics "
                "they are"
            )


@dataclass(frozen=True, slots=True)
class HttpSockets:
    """Bound, and not yet listened on."""

    main: socket.socket
    address: str
    """http://host:port, https://host:port or unix:/path."""
    own: socket.socket | None
    metrics: str | None
    """Where this process alone answers /metrics; None: nowhere on TCP."""

    @property
    def all(self) -> list[socket.socket]:
        """The main one first."""
        return [self.main] if self.own is None else [self.main, self.own]


@contextlib.contextmanager
def http_sockets(addresses: Addresses) -> Iterator[HttpSockets]:
    """Raises ConfigurationError for an address that cannot be had."""
    with contextlib.ExitStack() as on_end:
        if addresses.uds is not None:
            main = on_end.enter_context(_bind_unix(addresses.uds))
            on_end.callback(addresses.uds.unlink, missing_ok=True)
            address, metrics = f"unix:{addresses.uds}", None
        else:
            host, port, shared = addresses.host, addresses.port, addresses.reuse_port
            main = on_end.enter_context(_bind_tcp(host, port, shared=shared))
            address = _url(host, main, "https" if addresses.tls else "http")
            metrics = None if shared else f"{address}/metrics"
        own = None
        if addresses.metrics_port is not None:
            own = on_end.enter_context(_bind_metrics(addresses.metrics_port))
            metrics = f"{_url(OWN_HOST, own)}/metrics"
        yield HttpSockets(main, address, own, metrics)


def bind_grpc(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None = None
) -> str:
    """The address it really listens on; without credentials, no TLS. Raises ConfigurationError."""
    if listen.startswith("unix:"):
        _clear_unix(Path(listen.removeprefix("unix:")))  # gRPC takes it from whoever is there
    try:
        port = (
            server.add_insecure_port(listen)
            if credentials is None
            else server.add_secure_port(listen, credentials)
        )
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {listen} for gRPC: is it in use?") from error
    if listen.startswith("unix:"):
        return listen
    return f"{listen.rpartition(':')[0]}:{port}"


def _bind_tcp(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=shared
        )
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _bind_metrics(port: int) -> socket.socket:
    try:
        return _bind_tcp(OWN_HOST, port, shared=False)
    except ConfigurationError as error:
        option = flags.ROUTER_METRICS_PORT.option
        raise ConfigurationError(
            f"{error}; {option} names another port for metrics (0: any free one)"
        ) from error


def _url(host: str, listener: socket.socket, scheme: str = "http") -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _bind_unix(path: Path) -> socket.socket:
    """Takes the place of a socket that nobody listens on any more."""
    _clear_unix(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _clear_unix(path: Path) -> None:
    """Removes a socket that nobody listens on; one that is in use is not taken away."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigurationError(f"cannot listen on {path}: it is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ConfigurationError(f"cannot listen on {path}: it is in use")
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {path}: {error.strerror}") from error
