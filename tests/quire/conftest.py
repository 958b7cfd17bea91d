"""Every test here keeps its runtime files to itself; and a server that says what a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Json = dict[str, Any]
"""A body, parsed."""


@pytest.fixture(autouse=True)
def _private_directories(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_RUN", str(tmp_path_factory.mktemp("run")))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


class Server:
    """Answers each path with what its function writes; remembers what was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Json] = []
        self.answers: dict[str, Respond] = {}


class Answer(BaseHTTPRequestHandler):
    """One request being answered."""

    protocol_version = "HTTP/1.1"
    server_of: Server

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, payload: Json) -> None:
        self.server_of.requests.append(payload | {"_headers": dict(self.headers)})
        self.server_of.answers[self.path](self, payload)

    def json(self, payload: object, status: int = 200) -> None:
        """A whole answer."""
        body = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def events(self, *events: object, done: bool = True) -> None:
        """An event stream, one chunk per event."""
        self.begin_events()
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        for line in [*lines, "data: [DONE]\n\n"] if done else lines:
            self.chunk(line.encode())
        self.chunk(b"")

    def begin_events(self) -> None:
        """The head of an event stream."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


Respond = Callable[[Answer, Json], None]
"""Writes the answer to one request."""


class _ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def _serve() -> Iterator[Server]:
    class AnswerOfThisServer(Answer):
        pass

    http = _ManyAtOnce(("127.0.0.1", 0), AnswerOfThisServer)
    server = AnswerOfThisServer.server_of = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with _serve() as server:
        yield server
