"""HTTP's front: uvicorn on sockets that are bound already."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from gateway.cors import CorsPolicy
from gateway.hosts import HostPolicy
from router.app import create_app
from router.backend import Backend
from router.http_protocol import BoundedHttpProtocol
from router.middleware import FarewellMiddleware
from router.tls import ServerTls


class HttpServer(uvicorn.Server):
    """uvicorn, with the signals left to us, and quiet while nothing happens."""

    def __init__(
        self, backend: Backend, cors: CorsPolicy | None, hosts: HostPolicy, tls: ServerTls | None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                # Outside of the whole application: its last resort for a crash answers, too.
                FarewellMiddleware(
                    create_app(backend, cors, hosts), is_leaving=lambda: backend.engine.leaving
                ),
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
        self._main: socket.socket | None = None
        self._arriving: set[asyncio.Task[object]] = set()

    def end(self) -> None:
        """No longer listens; what is being answered gets a moment."""
        self.should_exit = True
        self._ending.set()

    @property
    def num_connections(self) -> int:
        """On which somebody may ask, those that are only being let in as well."""
        return len(self.server_state.connections) + len(self._arriving)

    def leave(self) -> None:
        """No longer listens on the first of its sockets. Who has knocked there is let in before:
        closing it would hang up on them."""
        assert self._main is not None
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # BlockingIOError, when nobody is left
            while True:
                connection, _ = self._main.accept()
                connection.setblocking(False)
                letting = loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
                arriving = loop.create_task(letting)
                self._arriving.add(arriving)
                arriving.add_done_callback(self._has_arrived)
        self.servers[0].close()

    def _has_arrived(self, arriving: asyncio.Task[object]) -> None:
        """Or has failed to, as in TLS's handshake: then it is gone, and nothing is to be said."""
        self._arriving.discard(arriving)
        if not arriving.cancelled():
            arriving.exception()

    def _protocol(self) -> BoundedHttpProtocol:
        return BoundedHttpProtocol(self.config, self.server_state, self.lifespan.state)

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
        self._main = sockets[0]
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
