"""Prompts scored by the whole stack with the real model: transformers' own logprobs.

Asked as evaluation harnesses ask: token ids, several prompts at once, echo, logprobs, and no output
or one token of it.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from bench.float_model import float_model
from quire.models import resolve
from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve

MODEL = "smollm2"
TOLERANCE = 1e-4
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Snow fell on 東京 🙂🙃 and nobody said a word about it. " * 12,
    "One.",
]


@pytest.fixture(scope="module", params=["64", pytest.param("2048", marks=pytest.mark.slow)])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Prompts are computed in chunks of at most so many tokens."""
    runtime_dir = tmp_path_factory.mktemp("run")
    flags = ["--max-model-len", "2048", "--replicas", "1", "--quantization", "none"]
    with serve(MODEL, runtime_dir, *flags, "--max-num-batched-tokens", request.param) as running:
        yield running


class Scorer:
    """transformers' view of a prompt."""

    def __init__(self) -> None:
        directory = resolve(MODEL, lambda message: None).path
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._model = float_model(directory)

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[tokens - 1, vocabulary], of what follows each token but the last."""
        with torch.inference_mode():
            logits: torch.Tensor = self._model(torch.tensor([token_ids])).logits[0, :-1]
        return logits.log_softmax(dim=1)

    def check(self, token_ids: Sequence[int], logprobs: dict[str, Any]) -> None:
        """Raises AssertionError unless the echoed prompt has the logprobs that it should."""
        told = logprobs["token_logprobs"][: len(token_ids)]
        assert (told[0], logprobs["top_logprobs"][0]) == (None, None)
        rows = self.rows(token_ids)
        expected = rows.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
        assert told[1:] == pytest.approx(expected.tolist(), abs=TOLERANCE)
        best = rows.max(dim=1).values.tolist()
        tops = [max(top.values()) for top in logprobs["top_logprobs"][1 : len(token_ids)]]
        assert tops == pytest.approx(best, abs=TOLERANCE)

    def search(
        self, token_ids: Sequence[int], *, width: int, max_tokens: int, length_penalty: float
    ) -> list[list[int]]:
        """What `generate` finds, best first; none of it ends early."""
        ids = torch.tensor([token_ids])
        config = GenerationConfig(
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=max_tokens,
            length_penalty=length_penalty,
            do_sample=False,
            eos_token_id=self._model.generation_config.eos_token_id,
            pad_token_id=self._model.generation_config.eos_token_id,
        )
        with torch.inference_mode():
            found = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        beams: list[list[int]] = found[:, len(token_ids) :].tolist()
        return beams


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer()


def score(server: Server, prompts: Sequence[Sequence[int]], **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompts, "echo": True, "logprobs": 3, "temperature": 0, **fields}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_batch_of_prompts_has_transformers_logprobs(
    server: Server, scorer: Scorer, max_tokens: int
) -> None:
    """The second time every prompt is in the prefix cache, and must be scored all the same."""
    prompts = [scorer.tokenizer(text).input_ids for text in TEXTS]
    answer = score(server, prompts, max_tokens=max_tokens)
    for prompt, text, choice in zip(prompts, TEXTS, answer["choices"], strict=True):
        assert choice["text"].startswith(text)
        assert {len(column) for column in choice["logprobs"].values()} == {len(prompt) + max_tokens}
        scorer.check(prompt, choice["logprobs"])
        offsets = choice["logprobs"]["text_offset"]
        assert offsets == sorted(offsets)
        for name, offset in zip(choice["logprobs"]["tokens"], offsets, strict=True):
            assert name.startswith("bytes:") or choice["text"].startswith(name, offset)
    assert answer["usage"]["completion_tokens"] == max_tokens * len(TEXTS)


@pytest.mark.parametrize("length_penalty", [1.0, 2.0])
def test_a_search_finds_transformers_beams(
    server: Server, scorer: Scorer, length_penalty: float
) -> None:
    prompt = scorer.tokenizer("The best thing about a long walk is").input_ids
    expected = scorer.search(prompt, width=3, max_tokens=10, length_penalty=length_penalty)
    body = {
        "prompt": prompt,
        "use_beam_search": True,
        "n": 3,
        "max_tokens": 10,
        "length_penalty": length_penalty,
        "return_token_ids": True,
    }
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    assert [choice["token_ids"] for choice in response.json()["choices"]] == expected


@pytest.mark.slow
def test_scores_outlive_a_worker_that_is_killed_among_them(server: Server, scorer: Scorer) -> None:
    prompt = scorer.tokenizer("A story of which nobody knows the end. " * 120).input_ids
    worker = next(row["pid"] for row in server.rows() if row["role"] == "worker")

    def kill() -> None:
        while not server.state()["running"]:
            time.sleep(0.01)
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    answer = score(server, [prompt], max_tokens=1)
    killer.join()
    scorer.check(prompt, answer["choices"][0]["logprobs"])
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(prompt) + 1
    idle_state(server.state)
