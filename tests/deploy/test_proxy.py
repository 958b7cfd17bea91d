"""The proxy itself, with the shipped configuration: who gets a request, by what routers answer."""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


class RouterInName(ThreadingHTTPServer):
    """Answers as a router's probes do, and its port to everything else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port: int = self.server_address[1]
        self.is_ready = True
        self.lives = True
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: RouterInName

    def do_GET(self) -> None:
        """http.server's name for it."""
        fine = {"/ready": self.server.is_ready, "/health": self.server.lives}
        body = str(self.server.port).encode()
        self.send_response(200 if fine.get(self.path, True) else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def routers() -> Iterator[list[RouterInName]]:
    made = [RouterInName(), RouterInName()]
    yield made
    for router in made:
        router.shutdown()
        router.server_close()


@pytest.fixture
def proxy(routers: list[RouterInName], unused_tcp_port: int, tmp_path: Path) -> Iterator[str]:
    """Its address. Docker's DNS is not here: the routers are named instead."""
    config = CONFIG.read_text()
    config = re.sub(r"(?m)^resolvers docker\n(?:    .*\n)+", "", config)
    http_only = re.sub(
        r"(?ms)^(?:frontend (?:inference|metrics)|backend \w+_grpc)\n.*?(?=^\w|\Z)", "", config
    )
    named = "\n".join(
        f"    server r{router.port} 127.0.0.1:{router.port} check inter 200ms fall 2 rise 1"
        for router in routers
    )
    http_only = re.sub(r"(?m)^    server-template .*$", named, http_only)
    path = tmp_path / "haproxy.cfg"
    path.write_text(http_only.replace("bind :8000", f"bind 127.0.0.1:{unused_tcp_port}"))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(path)])
    try:
        yield f"http://127.0.0.1:{unused_tcp_port}/v1/models"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def until_answered_by(proxy: str, expected: set[int]) -> None:
    """Ten requests in a row, answered by exactly these; an empty set: by nobody."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        answered = set()
        for _ in range(10):
            try:
                answer = httpx.get(proxy)
            except httpx.TransportError:
                answered.add(-1)  # it does not listen yet
                continue
            answered.add(int(answer.text) if answer.status_code == 200 else 0)
        if answered == (expected or {0}):
            return
    raise AssertionError(f"answered by {answered}, not by {expected}")


def test_requests_go_to_who_is_ready_and_else_to_who_lives(
    proxy: str, routers: list[RouterInName]
) -> None:
    one, other = routers
    until_answered_by(proxy, {one.port, other.port})
    one.is_ready = False
    until_answered_by(proxy, {other.port})
    other.is_ready = False
    until_answered_by(proxy, {one.port, other.port})
    one.lives = False
    until_answered_by(proxy, {other.port})
    other.lives = False
    until_answered_by(proxy, set())
    one.is_ready = one.lives = True
    until_answered_by(proxy, {one.port})
