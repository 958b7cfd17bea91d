"""A stack that has too much to do: who waits for too long, and who is refused and when to come
back."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server, serve

MODEL = "smollm2"
BUSY = {"prompt": [1, 2, 3], "max_tokens": 1900, "ignore_eos": True, "stream": True}
SHORT = {"prompt": [4, 5, 6], "max_tokens": 2, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime_dir = tmp_path_factory.mktemp("run")
    flags = ("--max-model-len", "2048", "--max-num-seqs", "1", "--max-queued", "1")
    with serve(MODEL, runtime_dir, *flags) as running:
        yield running


@contextlib.contextmanager
def busy(server: Server, **more: Any) -> Iterator[Iterator[str]]:
    """Meanwhile the only slot is taken by a stream, whose events these are."""
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=BUSY | more, timeout=60) as response:
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        assert "choices" in next(events)
        yield events


def total(server: Server, name: str) -> float:
    """One of the scheduler's metrics."""
    (metrics,) = (row["metrics"] for row in server.rows() if row["role"] == "scheduler")
    lines = [line for line in httpx.get(str(metrics)).text.splitlines() if line.startswith(name)]
    assert lines, name
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def until_idle(server: Server) -> float:
    """Sequences whose time was over since the start, once nothing is in flight."""
    for _ in range(300):
        if not total(server, "vllm:num_requests_running"):
            return total(server, "quire:expired_total")
        time.sleep(0.1)
    raise AssertionError("something goes on")


def test_a_request_whose_turn_does_not_come_in_time_ends_with_504(server: Server) -> None:
    before = until_idle(server)
    with busy(server):
        response = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hello"}], "timeout": 0.5},
            timeout=60,
        )
    assert response.status_code == 504
    error = response.json()["error"]
    assert error["code"] == "timeout"
    assert error["message"] == "timeout is 0.5 s; it passed before the first token came"
    assert until_idle(server) == before + 1


def test_a_stream_whose_time_is_over_ends_with_an_error_and_frees_its_slot(server: Server) -> None:
    before = until_idle(server)
    with busy(server, timeout=1.5) as events:
        *_, last = events
    assert json.loads(last)["error"]["message"] == (
        "timeout is 1.5 s; it passed before the answer was complete"
    )
    assert until_idle(server) == before + 1
    again = httpx.post(f"{server.url}/v1/completions", json=SHORT, timeout=60)
    assert again.status_code == 200


def test_who_finds_the_queue_full_hears_when_to_come_back(server: Server) -> None:
    until_idle(server)
    url = f"{server.url}/v1/completions"
    with ThreadPoolExecutor(1) as threads:
        with busy(server):
            queued = threads.submit(httpx.post, url, json=SHORT, timeout=60)
            while not total(server, "vllm:num_requests_waiting"):
                time.sleep(0.05)
            refused = httpx.post(url, json=SHORT | {"timeout": 5}, timeout=60)
            assert refused.status_code == 429
            assert "1 sequences are queued; the limit is 1" in refused.json()["error"]["message"]
            assert 1 <= int(refused.headers["retry-after"]) <= 600
        assert queued.result().status_code == 200  # the slot's client has left
    until_idle(server)
