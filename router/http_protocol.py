"""uvicorn's HTTP/1.1 protocol with two things added: bounded headers, and a way to hang up.

httptools collects headers of any length for any time, so a connection could hold any amount of
memory. And a client that stops reading keeps a closed connection open for as long as it likes,
because closing waits for what is written; only aborting the transport ends that.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
HEADERS_S = 30.0
"""How long a new connection may take to say what it wants."""

HANG_UP = "quire.hang_up"
"""Key in the ASGI scope's extensions; "call" under it ends the connection at once."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _in_headers = True
    _num_header_bytes = 0
    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        super().connection_made(transport)
        self._impatience = self.loop.call_later(HEADERS_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It left."""
        self._calm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of headers or bodies."""
        super().data_received(data)
        if self._in_headers and not self.transport.is_closing():
            self._num_header_bytes += len(data)
            if self._num_header_bytes > MAX_HEADER_BYTES:
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True
        self._num_header_bytes = 0
        self.scope["extensions"] = {HANG_UP: {"call": self.transport.abort}}

    def on_headers_complete(self) -> None:
        """Its body may follow."""
        self._in_headers = False
        self._calm()
        super().on_headers_complete()

    def _calm(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
