"""uvicorn's HTTP/1.1 protocol with three things added: bounded headers, and an end to connections
whose other side does not read, or is gone without a word.

httptools collects headers of any length for any time, so a connection could hold any amount of
memory; trailers of a chunked body as well, and they would be added to the headers of a request
that is already being answered.

    (first byte) headers ──▶ body ──▶ (trailers) ──▶ next request, on the same connection
    └ HEADERS_S ──────┘      └ whoever reads it bounds its time ┘

What is not body counts against the limit, from the last byte of a body or end of a message on.

A client that does not read keeps what is written to it, and whoever writes; and a closed connection
as well, because closing waits for what is written. So who writes waits for `SEND_S` at most until
there is room again, and so does who closes: then the transport is aborted, and the request that is
being answered with it. Answers are written in pieces (`router.whole`), so that slow is not still.

A machine that lost its power or its network says nothing. The kernel would try for a quarter of an
hour to bring it what is written, and for ever to hear from it where nothing is; here both take
`GONE_S` at most, and the request is aborted.
"""

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.wait_limit import SEND_S

MAX_HEADER_BYTES = 64 * 1024
HEADERS_S = 30.0
"""How long a client may take to say what it wants, on a new connection or an old one."""

GONE_S = 60
"""So long without a sign from the other side's kernel, and a connection is over."""
_PROBES = 3
UNSENT_BYTES = 128 * 1024
"""What the kernel takes for a client beyond what is on its way to it: else it takes megabytes, and
room for more shows only when a third of them is gone."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _in_body = False
    """Between the headers of a request and the end of its trailers."""
    _num_header_bytes = 0
    _impatience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    """Runs while there is no room to write, and while it closes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            _notice_loss(connection)
            _keep_little(connection)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """It left."""
        self._calm()
        self._mind_reader(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of headers, bodies or trailers."""
        self._num_header_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._num_header_bytes > MAX_HEADER_BYTES:
            self._refuse_headers()
        elif not self._in_body and self._num_header_bytes and self._impatience is None:
            self._expect_headers()

    def pause_writing(self) -> None:
        """There is no room."""
        super().pause_writing()
        self._mind_reader(SEND_S)

    def resume_writing(self) -> None:
        """There is again."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._mind_reader(None)

    def on_response_complete(self) -> None:
        """All of it is written, if not yet sent."""
        super().on_response_complete()
        self._mind_end()

    def send_400_response(self, msg: str) -> None:
        """The other side speaks no HTTP."""
        super().send_400_response(msg)
        self._mind_end()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked for."""
        super().timeout_keep_alive_handler()
        self._mind_end()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; a trailer says nothing that anybody here wants to know."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its body may follow."""
        self._in_body = True
        self._num_header_bytes = 0
        self._calm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        self._num_header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here in full."""
        self._in_body = False
        self._num_header_bytes = 0
        super().on_message_complete()

    def _refuse_headers(self) -> None:
        """Hangs up, and says why if that does not land in the middle of an answer."""
        cycle = self.cycle
        is_idle = cycle is None or cycle.response_complete
        if is_idle or (self._in_body and not cycle.response_started):
            self.transport.write(_TOO_LARGE)
        self.transport.close()
        self._mind_end()

    def _mind_end(self) -> None:
        """If it closes, what is written is sent within `SEND_S`."""
        if self.transport.is_closing():
            self._mind_reader(SEND_S)

    def _mind_reader(self, limit_s: float | None) -> None:
        if self._unread is not None:
            self._unread.cancel()
        self._unread = None if limit_s is None else self.loop.call_later(limit_s, self._abort)

    def _abort(self) -> None:
        self.transport.abort()

    def _expect_headers(self) -> None:
        self._impatience = self.loop.call_later(HEADERS_S, self._lose_patience)

    def _lose_patience(self) -> None:
        """No complete headers yet: the end, unless an answer to an earlier request is under way."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
        else:
            self._expect_headers()

    def _calm(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


def _notice_loss(connection: socket.socket) -> None:
    """Silence is probed from half of `GONE_S` on."""
    probe_s = max(1, GONE_S // (2 * _PROBES))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", max(1, GONE_S // 2)),
        ("TCP_KEEPINTVL", probe_s),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", 1000 * GONE_S),
    ):
        if hasattr(socket, option):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _keep_little(connection: socket.socket) -> None:
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
