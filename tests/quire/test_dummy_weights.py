"""`quire serve --load-format dummy`: a model of which only its configuration is there."""

import json
import urllib.request
from pathlib import Path

from tests.e2e.server import serve
from tests.gateway import tiny_model
from tests.worker.builders import write_tiny_llama


def test_a_configuration_is_enough_to_be_served(tmp_path: Path) -> None:
    tiny_model.build(tmp_path / "tiny")
    directory = write_tiny_llama(tmp_path / "tiny", vocab_size=400)
    (directory / "model.safetensors").unlink()
    with serve(directory, tmp_path / "run", "--load-format", "dummy") as server:
        answers = [complete(server.url) for _ in range(2)]
    assert answers[0] == answers[1], "the same weights, each time"
    assert answers[0]["usage"]["completion_tokens"] == 5


def complete(url: str) -> dict[str, dict[str, int]]:
    """Five greedy tokens; what does not depend on when."""
    body = {"model": "tiny", "prompt": "the quick", "max_tokens": 5, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body | {"ignore_eos": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    return {key: answer[key] for key in ("choices", "usage")}
