"""Real clients against `quire serve`: the openai package, gRPC, reflection; and real failures."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import openai
import psutil
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from openai.types.chat import ChatCompletionMessageParam

from protos.quire.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2
from tests.e2e.idle import idle_state
from tests.e2e.server import Server, serve

MODEL = "smollm2"
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime_dir = tmp_path_factory.mktemp("run")
    with serve(MODEL, runtime_dir, "--max-model-len", "2048", "--replicas", "1") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_streaming_and_not_say_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=24, temperature=0
    )
    text = whole.choices[0].message.content
    assert text
    assert "Paris" in text
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 24

    with client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == text
    assert chunks[-1].usage == whole.usage or chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_with_logprobs_and_two_samples(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4,", max_tokens=6, temperature=0, logprobs=2, n=2
    )
    assert len(answer.choices) == 2
    assert answer.choices[0].text == answer.choices[1].text
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert all(value <= 0 for value in logprobs.token_logprobs or [])


def test_models_health_version_and_metrics(server: Server, client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list().data] == [MODEL]
    for path in ("/health", "/ready", "/version"):
        assert httpx.get(server.url + path).status_code == 200
    metrics = httpx.get(server.url + "/metrics").text
    assert "vllm:time_to_first_token_seconds_bucket" in metrics


async def test_64_concurrent_streams_are_each_complete(server: Server) -> None:
    async def one(client: openai.AsyncOpenAI, i: int) -> tuple[int, str | None]:
        stream = await client.completions.create(
            model=MODEL,
            prompt=f"Story number {i}:",
            max_tokens=16,
            temperature=0.8,
            seed=i,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        usage, reason = 0, None
        async for chunk in stream:
            if chunk.usage:
                usage = chunk.usage.completion_tokens
            if chunk.choices and chunk.choices[0].finish_reason:
                reason = chunk.choices[0].finish_reason
        return usage, reason

    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        ends = await asyncio.gather(*(one(client, i) for i in range(64)))
    assert ends == [(16, "length")] * 64


async def test_grpc_client_and_reflection(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(
            text="The capital of France is",
            sampling=inference_pb2.SamplingOptions(max_tokens=5, temperature=0),
        )
        pieces = [piece async for piece in stub.Generate(request)]
    assert "Paris" in "".join(piece.text for piece in pieces)
    assert pieces[-1].finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    assert pieces[-1].usage.num_output_tokens == 5

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "quire.v1.InferenceService" in services
    assert "grpc.health.v1.Health" in services


@pytest.mark.chaos
def test_a_killed_worker_is_a_pause_not_an_error(server: Server, client: openai.OpenAI) -> None:
    want = client.completions.create(model=MODEL, prompt="Rivers", max_tokens=80, temperature=0)
    worker = server.processes()["worker"]
    text, killed = "", False
    with client.completions.create(
        model=MODEL, prompt="Rivers", max_tokens=80, temperature=0, stream=True
    ) as stream:
        for chunk in stream:
            text += chunk.choices[0].text
            if not killed and len(text) > 20:
                os.kill(worker, signal.SIGKILL)
                killed = True
    assert killed
    assert text == want.choices[0].text
    assert server.processes()["worker"] != worker


def test_every_block_comes_back_and_ps_shows_three_processes(server: Server) -> None:
    blocks = idle_state(server.state)["blocks"]
    assert blocks["free"] + blocks["cached"] == blocks["total"]
    processes = server.processes()
    assert set(processes) == {"router", "scheduler", "worker"}
    assert all(psutil.pid_exists(pid) for pid in processes.values())


@pytest.mark.parametrize("role", ["router", "scheduler"])
def test_router_and_scheduler_map_no_torch(server: Server, role: str) -> None:
    maps = psutil.Process(server.processes()[role]).memory_maps()
    assert not [m.path for m in maps if "libtorch" in m.path]


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    with serve(MODEL, tmp_path, "--max-model-len", "512") as running:
        pids = [running.process.pid, *running.processes().values()]
    assert running.process.returncode == 0
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
