"""Embeddings over HTTP and gRPC: every form of input, what is refused, and what is survived."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest

from protos.quire.v1 import inference_pb2, inference_pb2_grpc, scheduler_pb2
from router.server import Router
from tests import openai_spec
from tests.gateway.tiny_model import MAX_MODEL_LEN
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler, vector_of

DIM = 4


@pytest.fixture(autouse=True)
def embeds(scheduler: FakeScheduler) -> None:
    """Set before a router is started."""
    scheduler.embedding_dim = DIM


async def post(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/embeddings", json=body)


def values(data: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(data, "<f4").tolist()
    return numbers


@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
async def test_the_official_client_gets_a_vector_for_each_input(
    client: openai.AsyncOpenAI, encoding_format: Any
) -> None:
    said = {} if encoding_format is None else {"encoding_format": encoding_format}
    answer = await client.embeddings.create(model="tiny", input=["xyz", "x"], **said)
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4
    said_as: list[Any] = [entry.embedding for entry in answer.data]
    vectors = [
        values(base64.b64decode(said)) if isinstance(said, str) else said for said in said_as
    ]
    assert [vector[0] for vector in vectors] == [3, 1]
    assert all(len(vector) == DIM for vector in vectors)


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("xyz", [3]),
        (["xyz"], [3]),
        ([5, 6, 7, 8], [4]),
        ([[5, 6], [7]], [2, 1]),
    ],
)
async def test_texts_and_tokens_one_or_several(
    http: httpx.AsyncClient, given: Any, counts: list[int]
) -> None:
    answer = (await post(http, input=given)).json()
    assert answer["object"] == "list"
    assert [entry["embedding"][0] for entry in answer["data"]] == counts
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    cached = {"cached_tokens": sum(counts) - len(counts)}
    assert answer["usage"] == {
        "prompt_tokens": sum(counts),
        "total_tokens": sum(counts),
        "prompt_tokens_details": cached,
    }


@openai_spec.needs_spec
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
async def test_answers_and_errors_are_valid_by_openai_s_specification(
    http: httpx.AsyncClient, encoding_format: str
) -> None:
    answer = (await post(http, input=["xyz", "x"], encoding_format=encoding_format)).json()
    if encoding_format == "base64":  # which the specification knows in requests alone
        for entry in answer["data"]:
            entry["embedding"] = values(base64.b64decode(entry["embedding"]))
    openai_spec.check(answer | {"model": "tiny"}, "CreateEmbeddingResponse")
    openai_spec.check((await post(http, input=[])).json(), "ErrorResponse")


async def test_numbers_are_written_exactly(http: httpx.AsyncClient) -> None:
    answer = (await post(http, input=[5, 6, 7])).json()
    vector = np.array(answer["data"][0]["embedding"], "<f4")
    assert vector.tobytes() == vector_of([5, 6, 7], DIM)


async def test_what_is_submitted_asks_for_nothing_but_the_vector(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    await post(http, input=[[5, 6], [7, 8]], priority=3, cache_salt="mine", user="me")
    assert [submit.max_tokens for submit in scheduler.submits] == [0, 0]
    assert {(s.priority, s.cache_salt, s.num_samples) for s in scheduler.submits} == {
        (3, "mine", 1)
    }


async def test_truncation_keeps_the_beginning(http: httpx.AsyncClient) -> None:
    long = list(range(5, 5 + 200)) + list(range(5, 5 + 200))
    for kept, count in ((7, 7), (-1, MAX_MODEL_LEN), (None, None)):
        response = await post(http, input=[long], truncate_prompt_tokens=kept)
        if count is None:
            assert response.json()["error"]["code"] == "context_length_exceeded"
        else:
            assert response.json()["data"][0]["embedding"][:2] == [count, sum(long[:count])]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "input is missing"),
        ({"input": []}, "input", "input is []"),
        ({"input": ["x", 5]}, "input", "it must be a string"),
        ({"input": [True]}, "input", "it must be a string"),
        ({"input": [[]]}, "input", "input has 0 tokens"),
        ({"input": [400]}, "input", "token ids of this model are 0 to 399"),
        ({"input": ["x"] * 2049}, "input", "input has 2049 entries; it must have at most 2048"),
        ({"input": [5] * 257}, "input", "257 tokens; this model embeds at most 256"),
        ({"input": "x", "dimensions": 0}, "dimensions", "at least 1"),
        ({"input": "x", "dimensions": 5}, "dimensions", "at most 4"),
        ({"input": "x", "dimensions": 2}, "dimensions", "was not trained for fewer"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", '["float", "base64"]'),
        ({"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"input": "x", "truncate_prompt_tokens": 257}, "truncate_prompt_tokens", "at most 256"),
        ({"input": "x", "normalize": False}, "normalize", "not supported by this server"),
        ({"input": "x", "messages": [{}]}, "messages", "not supported by this server"),
        ({"input": "x", "cache_salt": "a b"}, "cache_salt", "letters, digits"),
        ({"input": "x", "priority": 1 << 40}, "priority", "at most"),
        ({"input": "x", "request_id": "a b"}, "request_id", "visible ASCII"),
    ],
)
async def test_bad_input_names_field_limit_and_value(
    http: httpx.AsyncClient, body: dict[str, Any], param: str, says: str
) -> None:
    response = await post(http, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]


async def test_all_numbers_may_be_asked_for(http: httpx.AsyncClient) -> None:
    answer = (await post(http, input="x", dimensions=DIM)).json()
    assert len(answer["data"][0]["embedding"]) == DIM


async def test_a_model_that_embeds_nothing_says_so(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.embedding_dim = 0
    async with (
        start_router() as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        error = (await post(http, input="x")).json()["error"]
    assert error["message"] == 'model "tiny" is not served for embeddings'
    assert error["param"] == "model"


async def test_an_encoder_is_ready_by_a_vector_and_refuses_to_generate(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.is_encoder = True
    scheduler.kv_blocks = 0
    async with (
        start_router() as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        assert scheduler.num_canaries == 1
        bodies = {
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
            "/v1/completions": {"prompt": "hi"},
        }
        for path, body in bodies.items():
            response = await http.post(path, json=body)
            assert response.status_code == 400
            message = response.json()["error"]["message"]
            assert message == 'model "tiny" only embeds; use /v1/embeddings'
        async with grpc.aio.insecure_channel(router.grpc_address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="only embeds"):
                async for _ in stub.Generate(inference_pb2.GenerateRequest(text="hi")):
                    pass
        assert (await post(http, input="xyz")).json()["data"][0]["embedding"][0] == 3


async def test_a_failure_of_one_input_is_that_of_the_call(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.error = "the model's output was not finite"
    response = await post(http, input=["x", "y"])
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the model's output was not finite"


async def test_a_refusal_speaks_of_the_input(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.refusal = scheduler_pb2.Refusal(
        code=scheduler_pb2.REFUSAL_CODE_INVALID,
        message="token_id is too long",
        field="token_id",
    )
    error = (await post(http, input="x")).json()["error"]
    assert (error["message"], error["param"]) == ("input is too long", "input")


async def test_a_client_that_leaves_takes_its_prompts_along(
    router: Router, scheduler: FakeScheduler
) -> None:
    scheduler.hold_vectors = True
    async with httpx.AsyncClient(base_url=router.address) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/v1/embeddings", json={"input": ["x", "y"]}, timeout=0.5)
    await until(lambda: len(scheduler.aborted) == 2)
    await until(lambda: router.backend.permits.num_taken == 0)


async def test_a_scheduler_that_is_restarted_is_asked_again(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.hold_vectors = True
    asking = asyncio.create_task(post(http, input=["xyz", "xy"]))
    await until(lambda: len(scheduler.submits) == 2)
    scheduler.kill()
    await until(lambda: len(scheduler.submits) == 4)
    scheduler.hold_vectors = False
    answer = (await asking).json()
    assert [entry["embedding"][0] for entry in answer["data"]] == [3, 2]


async def test_metrics_count_prompts_that_are_embedded(http: httpx.AsyncClient) -> None:
    await post(http, input=[[5, 6, 7], [8]])
    metrics = (await http.get("/metrics")).text
    assert 'vllm:prompt_tokens_total{model_name="tiny"} 4.0' in metrics
    assert 'vllm:generation_tokens_total{model_name="tiny"} 0.0' in metrics
    assert 'finished_reason="stop",model_name="tiny"} 2.0' in metrics


@pytest.fixture
async def stub(router: Router) -> AsyncIterator[inference_pb2_grpc.InferenceServiceStub]:
    async with grpc.aio.insecure_channel(router.grpc_address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


Stub = inference_pb2_grpc.InferenceServiceStub
Input = inference_pb2.EmbedInput


async def test_grpc_clients_embed_texts_and_tokens(stub: Stub) -> None:
    tokens = Input(tokens=inference_pb2.TokenIds(ids=[5, 6]))
    answer = await stub.Embed(inference_pb2.EmbedRequest(inputs=[Input(text="xyz"), tokens]))
    first, second = answer.embeddings
    assert values(first.vector)[0] == 3
    assert second.vector == vector_of([5, 6], DIM)
    assert second.usage == inference_pb2.Usage(num_prompt_tokens=2, num_cached_tokens=1)


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda r: None, "INVALID_ARGUMENT", "inputs has 0 entries"),
        (lambda r: r.inputs.add(), "INVALID_ARGUMENT", r"inputs\[0\] is empty"),
        (lambda r: setattr(r, "model", "other"), "NOT_FOUND", "does not exist"),
        (
            lambda r: r.MergeFrom(
                inference_pb2.EmbedRequest(inputs=[Input(text="x")], dimensions=2)
            ),
            "INVALID_ARGUMENT",
            "dimensions is 2",
        ),
    ],
)
async def test_grpc_clients_hear_what_is_wrong(
    stub: Stub, make: Callable[[inference_pb2.EmbedRequest], object], code: str, says: str
) -> None:
    request = inference_pb2.EmbedRequest()
    make(request)
    with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
        await stub.Embed(request)
    assert caught.value.code().name == code
