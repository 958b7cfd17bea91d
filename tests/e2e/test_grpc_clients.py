"""`quire.Client` and `quire.AsyncClient` against `quire serve` with the real model."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from quire import AsyncClient, Client, SamplingParams
from quire.errors import AuthenticationFailed, InvalidRequest, ModelNotServed
from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve

MODEL, KEY = "smollm2", "secret"
GREEDY = SamplingParams(temperature=0, max_tokens=12)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(
        MODEL, tmp_path_factory.mktemp("run"), "--max-model-len", "1024", "--api-key", KEY
    ) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.grpc_port}", api_key=KEY, timeout=120) as client:
        yield client


def test_text_tokens_and_conversations(client: Client) -> None:
    by_text = client.generate("The capital of France is", GREEDY)
    assert by_text.outputs[0].text.startswith(" Paris")
    token_ids = client.tokenize("The capital of France is")
    assert client.detokenize(token_ids) == "The capital of France is"
    by_tokens = client.generate(token_ids, GREEDY)
    assert by_tokens.outputs == by_text.outputs
    assert by_tokens.num_prompt_tokens == len(token_ids)
    assert "Paris" in client.generate(QUESTION, GREEDY).outputs[0].text
    [model] = client.models()
    assert (model.name, model.max_model_len) == (MODEL, 1024)


def test_a_stream_adds_up_to_the_whole_answer(client: Client) -> None:
    params = SamplingParams(temperature=0.9, seed=3, n=2, max_tokens=12, logprobs=1)
    whole = client.generate(QUESTION, params)
    chunks = list(client.stream(QUESTION, params))
    for sample in whole.outputs:
        own = [chunk for chunk in chunks if chunk.index == sample.index]
        assert "".join(chunk.text for chunk in own) == sample.text
        assert [token for chunk in own for token in chunk.token_ids] == sample.token_ids
        assert [row for chunk in own for row in chunk.logprobs or ()] == sample.logprobs
        assert own[-1].finish_reason == sample.finish_reason


async def test_leaving_a_stream_gives_its_blocks_back(server: Server) -> None:
    endless = SamplingParams(max_tokens=900, ignore_eos=True)
    async with AsyncClient(f"127.0.0.1:{server.grpc_port}", api_key=KEY) as client:
        for _ in range(3):
            async with client.stream("Once upon a time", endless) as stream:
                assert (await anext(stream)).token_ids
    blocks = idle_state(server.state)["blocks"]
    assert blocks["free"] + blocks["cached"] == blocks["total"]


def test_vectors_are_those_of_the_http_door(tmp_path: Path) -> None:
    texts = ["A river runs through the city.", "東京 is a city.", "tokens & vectors"]
    with serve("minilm", tmp_path) as running, Client(f"127.0.0.1:{running.grpc_port}") as client:
        vectors = client.embed(texts)
        by_tokens = client.embed([client.tokenize(text) for text in texts])
        answer = httpx.post(
            f"{running.url}/v1/embeddings", json={"model": "minilm", "input": texts}
        )
        with pytest.raises(InvalidRequest, match="dimensions"):
            client.embed(texts, dimensions=100_000)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(by_tokens, vectors, atol=1e-5)
    over_http = [entry["embedding"] for entry in answer.json()["data"]]
    np.testing.assert_allclose(over_http, vectors, atol=1e-5)


def test_errors_have_names(server: Server, client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"the prompt has 2000 tokens.* at most 1024"):
        client.generate([1] * 2000, GREEDY)
    with pytest.raises(ModelNotServed):
        client.generate("x", GREEDY, model="gpt-5")
    address = f"127.0.0.1:{server.grpc_port}"
    with Client(address, api_key="wrong") as stranger, pytest.raises(AuthenticationFailed):
        stranger.models()
