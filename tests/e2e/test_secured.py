"""`quire serve` with all its locks: TLS, keys from a file, and a token between its processes."""

import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from quire import Client, SamplingParams, Tls
from tests.certificates import signed
from tests.e2e.server import serve

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
        said = "".join(server.lines)
        assert not any(secret in said for secret in ("sk-a", "sk-b", "sk-c", TOKEN))
        commands = _command_lines([row["pid"] for row in server.rows()])
        assert not any(secret in commands for secret in ("sk-a", "sk-b", "sk-c", TOKEN))


def _command_lines(pids: list[int]) -> str:
    """What everybody on this machine can read of processes."""
    return " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
