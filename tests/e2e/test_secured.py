"""`quire serve` with all its locks: TLS, keys from a file, and a token between its processes."""

import contextlib
import functools
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire import Client, SamplingParams, Tls
from tests.certificates import signed
from tests.e2e.server import serve
from tests.gateway import tiny_model
from tests.ports import free_port
from tests.worker.builders import write_tiny_llama

PROMPT = "The capital of Italy is Rome. " * 4 + "The capital of France is"
TOKEN = "a-token-that-the-processes-share"


def test_a_stack_with_certificate_keys_and_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, keys = signed(tmp_path / "tls"), tmp_path / "keys"
    keys.write_text("alice sk-a\nbob sk-b\n")
    keys.chmod(0o600)
    monkeypatch.setenv("QUIRE_CLUSTER_TOKEN", TOKEN)
    monkeypatch.setenv("QUIRE_API_KEY", "sk-c")
    flags = ["--ssl-certfile", files.cert, "--ssl-keyfile", files.key]
    flags += ["--api-key-file", str(keys), "--max-model-len", "512"]
    with serve("smollm2", tmp_path, *flags) as server:
        url = f"https://127.0.0.1:{server.port}"
        assert f"{url}/v1" in "".join(server.lines)
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=files.ca)) as http:
            asked = {"model": "smollm2", "prompt": PROMPT, "max_tokens": 2}
            for key, code in (("sk-a", 200), ("sk-b", 200), ("sk-c", 200), ("sk-d", 401)):
                headers = {"authorization": f"Bearer {key}"}
                answer = http.post("/v1/completions", json=asked, headers=headers, timeout=60)
                assert answer.status_code == code
            text = http.get("/metrics", headers={"x-api-key": "sk-a"}).text
        for name in ("alice", "bob", "default"):
            assert f'quire:key_requests_total{{key_name="{name}",model_name="smollm2"}} 1.0' in text
        # Three keys' requests began alike; none found what another's had left.
        assert server.state()["prefix_hit_tokens"] == 0
        target = f"localhost:{server.grpc_port}"
        with Client(target, api_key="sk-b", tls=Tls(ca_certs=files.ca), timeout=60) as client:
            params = SamplingParams(max_tokens=2, temperature=0)
            assert "Paris" in client.generate(PROMPT, params).outputs[0].text
        # The second time it was the same key's prompt.
        assert server.state()["prefix_hit_tokens"] > 0
        forgotten = server.quire("cache", "reset").split()
        assert int(forgotten[0]) > 0
        assert server.state()["blocks"]["cached"] == 0
        scheduler = next(row for row in server.rows() if row["role"] == "scheduler")["address"]
        monkeypatch.delenv("QUIRE_CLUSTER_TOKEN")
        refused = subprocess.run(
            [sys.executable, "-m", "quire", "state", "--address", scheduler],
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 1
        assert "the cluster token is missing or wrong" in refused.stderr
        keys.write_text("alice sk-e\n")
        server.process.send_signal(signal.SIGHUP)
        server.until_said("read again: the keys are alice, default; certificates, too")
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=files.ca)) as http:
            for key, code in (("sk-a", 401), ("sk-b", 401), ("sk-c", 200), ("sk-e", 200)):
                assert http.get("/version", headers={"x-api-key": key}).status_code == code
        said = "".join(server.lines)
        assert not any(secret in said for secret in ("sk-a", "sk-b", "sk-c", "sk-e", TOKEN))
        commands = _command_lines([row["pid"] for row in server.rows()])
        assert not any(secret in commands for secret in ("sk-a", "sk-b", "sk-c", TOKEN))


def _command_lines(pids: list[int]) -> str:
    """What everybody on this machine can read of processes."""
    return " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)


@contextlib.contextmanager
def process(directory: Path, *arguments: str) -> Iterator[Path]:
    """A process by itself, without anything in its environment; yields its log."""
    log = directory / f"{len(list(directory.iterdir()))}.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("QUIRE_")}
    command = [sys.executable, "-m", *arguments, "--metrics-port", "0"]
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as running,
    ):
        try:
            yield log
        finally:
            running.kill()


def has_said(log: Path, words: str) -> bool:
    return words in log.read_text()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processes_over_tcp_know_each_other_by_certificate_and_token(tmp_path: Path) -> None:
    ours, theirs = signed(tmp_path / "ours"), signed(tmp_path / "theirs")
    token, logs = tmp_path / "token", tmp_path / "logs"
    token.write_text(TOKEN)
    logs.mkdir()
    address = f"localhost:{free_port()}"
    shown = [*ours.arguments, "--cluster-token-file", str(token)]
    tiny = str(write_tiny_llama(tmp_path / "tiny"))
    model = str(tiny_model.build(tmp_path / "text"))
    worker = ["worker", "--device", "cpu", "--threads", "1", "--model", tiny]
    worker += ["--scheduler", address]
    router = ["router", "--model", model, "--scheduler", address, "--port", "0"]
    router += ["--grpc-port", "0"]

    def state() -> dict[str, Any]:
        command = [sys.executable, "-m", "quire", "state", "--json", "--address", address]
        said = subprocess.run([*command, *shown], capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(said.stdout) if said.returncode == 0 else {}
        return found

    def everybody_is_here() -> bool:
        found = state()
        return bool(found) and len(found["replicas"]) == found["routers"] == 1

    with (
        process(logs, "scheduler", "--listen", address, *shown),
        process(logs, *worker, *shown),
        process(logs, *router, *shown),
    ):
        until(everybody_is_here)
        for stranger, says in (
            (theirs.arguments, "its certificate, or ours, is not accepted"),
            (ours.arguments, "the cluster token is missing or wrong"),
        ):
            with process(logs, *router, *stranger) as log:
                until(functools.partial(has_said, log, says))
        assert everybody_is_here()
