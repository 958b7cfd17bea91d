"""Vectors over the whole stack: equal to transformers', with a worker killed among them."""

import asyncio
import json
import os
import random
import signal
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModel

from protos.quire.v1 import inference_pb2, inference_pb2_grpc
from quire.client.state import fetch_state
from quire.models import resolve
from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve
from tests.worker.builders import write_tiny_llama

CLOSE = 1e-5
TEXT = (
    "the river of a city runs past old stone bridges while 12 boats wait for naïve tourists "
    "in 東京 and Straße; vectors, tokens & worker-processes! 🙂 antidisestablishmentarianism"
)
WORDS = TEXT.split()

Oracle = Callable[[list[int]], torch.Tensor]


@pytest.fixture(scope="module")
def minilm_dir() -> Path:
    return resolve("minilm", lambda message: None).path


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve("minilm", tmp_path_factory.mktemp("run")) as running:
        yield running


@pytest.fixture(scope="module")
def tokenize(minilm_dir: Path) -> Callable[[str], list[int]]:
    """As sentence-transformers does, without truncation."""
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text).ids


@pytest.fixture(scope="module")
def mean(minilm_dir: Path) -> Oracle:
    """What transformers makes of a prompt alone: the mean of its states, at length 1."""
    states = states_of(minilm_dir)
    return lambda tokens: torch.nn.functional.normalize(states(tokens).mean(0), dim=0)


def states_of(directory: Path) -> Oracle:
    model: Any = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()

    def states(tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            of_prompt: torch.Tensor = model(torch.tensor([tokens])).last_hidden_state[0]
        return of_prompt

    return states


def texts(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    return [" ".join(dice.choices(WORDS, k=dice.randint(1, 40))) for _ in range(count)]


def client_of(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    )


async def embed(client: openai.AsyncOpenAI, given: Any, **more: Any) -> torch.Tensor:
    answer = await client.embeddings.create(model="minilm", input=given, **more)
    return torch.tensor([entry.embedding for entry in answer.data])


def worst(vectors: torch.Tensor, prompts: list[list[int]], oracle: Oracle) -> float:
    want = torch.stack([oracle(prompt) for prompt in prompts])
    return float((vectors - want).abs().max())


async def test_batches_of_the_real_model_are_equal_to_transformers(
    minilm: Server, tokenize: Callable[[str], list[int]], mean: Oracle
) -> None:
    batches = [texts(count, seed) for seed, count in enumerate((64, 1, 17, 5))]
    async with client_of(minilm) as client:
        answers = await asyncio.gather(
            embed(client, batches[0]),
            embed(client, batches[1][0]),
            embed(client, batches[2], encoding_format="float"),
            embed(client, [tokenize(text) for text in batches[3]]),
        )
    for batch, vectors in zip(batches, answers, strict=True):
        assert worst(vectors, [tokenize(text) for text in batch], mean) < CLOSE


@pytest.mark.chaos
async def test_a_killed_worker_is_a_pause_not_an_error(
    minilm: Server, tokenize: Callable[[str], list[int]], mean: Oracle
) -> None:
    """Enough for many steps; the worker is killed when it has answered a few."""
    batches = [texts(128, seed) for seed in (10, 11)]
    worker = minilm.processes()["worker"]
    scheduler = next(row["address"] for row in minilm.rows() if row["role"] == "scheduler")
    before = (await fetch_state(scheduler))["vectors"]
    async with client_of(minilm) as client:
        asking = [asyncio.create_task(embed(client, batch)) for batch in batches]
        while (await fetch_state(scheduler))["vectors"] <= before:
            pass
        os.kill(worker, signal.SIGKILL)
        answers = await asyncio.gather(*asking)
    replays = (await fetch_state(scheduler))["replays"]
    assert replays > 0, "nothing was in flight when the worker was killed"
    assert minilm.processes()["worker"] != worker
    for batch, vectors in zip(batches, answers, strict=True):
        assert worst(vectors, [tokenize(text) for text in batch], mean) < CLOSE


async def test_grpc_clients_get_the_same_vectors(
    minilm: Server, tokenize: Callable[[str], list[int]], mean: Oracle
) -> None:
    batch = texts(9, 20)
    inputs = [inference_pb2.EmbedInput(text=text) for text in batch]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{minilm.grpc_port}") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        answer = await stub.Embed(inference_pb2.EmbedRequest(inputs=inputs))
    vectors = np.stack([np.frombuffer(each.vector, "<f4") for each in answer.embeddings])
    assert worst(torch.from_numpy(vectors), [tokenize(text) for text in batch], mean) < CLOSE


def test_an_encoder_says_what_it_does_not_do(minilm: Server) -> None:
    message = {"role": "user", "content": "hello"}
    answer = httpx.post(f"{minilm.url}/v1/chat/completions", json={"messages": [message]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == 'model "minilm" only embeds; use /v1/embeddings'
    answer = httpx.post(f"{minilm.url}/v1/embeddings", json={"input": "word " * 300})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    shown = "".join(minilm.lines)
    assert f"curl {minilm.url}/v1/embeddings" in shown


def test_nothing_is_left_running(minilm: Server) -> None:
    state = idle_state(minilm.state)
    assert state["blocks"] == {"total": 0, "free": 0, "cached": 0, "used": 0}
    assert (state["running"], state["waiting"]) == (0, 0)


@pytest.fixture(scope="module")
def decoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, and a tokenizer of letters."""
    directory = write_tiny_llama(tmp_path_factory.mktemp("models") / "letters")
    vocabulary = {letter: token for token, letter in enumerate(string.ascii_lowercase)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize("pooling", ["last", "mean"])
async def test_a_decoder_embeds_and_generates_at_once(
    decoder_dir: Path, tmp_path: Path, pooling: str
) -> None:
    """Prompts begin alike, are longer than a step, and share their steps with tokens."""
    dice = random.Random(4)
    head = [dice.randrange(300) for _ in range(40)]
    prompts = [head + [dice.randrange(300) for _ in range(dice.randint(1, 50))] for _ in range(24)]
    states = states_of(decoder_dir)

    def oracle(tokens: list[int]) -> torch.Tensor:
        of_prompt = states(tokens)
        vector = of_prompt[-1] if pooling == "last" else of_prompt.mean(0)
        return torch.nn.functional.normalize(vector, dim=0)

    flags = ["--pooling", pooling, "--max-num-batched-tokens", "32", "--num-blocks", "60"]
    with serve(decoder_dir, tmp_path, *flags) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            embedding = asyncio.create_task(http.post("/v1/embeddings", json={"input": prompts}))
            generating = [
                http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 5})
                for prompt in prompts[:6]
            ]
            texts = await asyncio.gather(*generating)
            answer = json.loads((await embedding).content)
        assert [text.status_code for text in texts] == [200] * 6
        vectors = torch.tensor([entry["embedding"] for entry in answer["data"]])
        assert worst(vectors, prompts, oracle) < CLOSE
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached > 0) == (pooling == "last")
        blocks = idle_state(server.state)["blocks"]
        assert blocks["free"] + blocks["cached"] == blocks["total"]
