"""Ctrl-C at `quire serve`: what runs is finished, what is new is refused; once more cuts it off."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server, serve

MODEL = "smollm2"
CUT = "the server had to stop before the request was complete"


def body(max_tokens: int) -> dict[str, Any]:
    """Of a stream that goes on for that long."""
    asked = {"prompt": [1, 2, 3], "max_tokens": max_tokens, "ignore_eos": True}
    return asked | {"model": MODEL, "stream": True}


class Stream:
    """One that is being read, from its first event on."""

    def __init__(self, server: Server, max_tokens: int) -> None:
        self.events: list[str] = []
        self._began = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(server, max_tokens))
        self._reader.start()
        assert self._began.wait(60)

    def whole(self) -> list[str]:
        """Its events, when it has ended."""
        self._reader.join(60)
        assert not self._reader.is_alive()
        return self.events

    def _read(self, server: Server, max_tokens: int) -> None:
        for event in _events(f"{server.url}/v1/completions", body(max_tokens)):
            self.events.append(event)
            self._began.set()


def _events(url: str, asked: dict[str, Any]) -> Iterator[str]:
    with httpx.stream("POST", url, json=asked, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


def until_draining(server: Server) -> httpx.Response:
    """The first answer to a new request that is a refusal."""
    asked = {"model": MODEL, "prompt": [1], "max_tokens": 1}
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60)
        except httpx.TransportError:  # it reached a router that had nothing to finish, and ended
            continue
        if answer.status_code != 200:
            return answer
    raise AssertionError("nothing was refused")


def statuses(server: Server, *paths: str) -> list[int]:
    """As they are while it drains."""
    with httpx.Client(base_url=server.url, transport=httpx.HTTPTransport(retries=3)) as client:
        return [client.get(path).status_code for path in paths]


@pytest.mark.parametrize("num_routers", [1, 2])
def test_ctrl_c_finishes_what_runs_and_refuses_what_is_new(
    tmp_path: Path, num_routers: int
) -> None:
    routers = ("--router-processes", str(num_routers))
    with serve(MODEL, tmp_path, "--max-model-len", "2048", *routers) as server:
        stream = Stream(server, max_tokens=100)
        server.process.send_signal(signal.SIGINT)
        refused = until_draining(server)
        ready, health = statuses(server, "/ready", "/health")
        events = stream.whole()
        assert server.process.wait(60) == 0
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["code"] == "service_unavailable"
    assert (ready, health) == (503, 200)
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    said = "".join(server.lines)
    assert "draining: 1 request in flight" in said
    assert "detached: rank 0" in said
    assert not [line for line in server.lines if " warning " in line or " error " in line]


def test_a_second_ctrl_c_cuts_streams_off_and_says_so_in_them(tmp_path: Path) -> None:
    with serve(MODEL, tmp_path, "--max-model-len", "2048", "--drain-timeout", "300") as server:
        stream = Stream(server, max_tokens=1900)
        server.process.send_signal(signal.SIGTERM)
        until_draining(server)
        server.process.send_signal(signal.SIGINT)
        events = stream.whole()
        assert server.process.wait(20) == 130
        pids = subprocess.run(
            ["pgrep", "-f", f"--port {server.port}"], capture_output=True, text=True, check=False
        )
    assert json.loads(events[-1])["error"]["message"] == CUT
    assert "[DONE]" not in events
    assert pids.stdout == ""
    connected = [line for line in server.lines if " connected from a unix socket" in line]
    assert connected
    assert all("router 'router-" in line for line in connected)
