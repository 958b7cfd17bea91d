"""Two ranks share the model, over gloo: the same tokens as one, and none lost with a rank."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from protos.quire.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.exactness import MAX_MODEL_LEN
from tests.e2e.languages import HARD
from tests.e2e.reference import NUM_OUTPUT_TOKENS, Prompt, Reference
from tests.e2e.server import Server, serve

KILL_AFTER = 10
"""Tokens that a stream has brought when a rank is lost."""


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--tensor-parallel-size", "2", "--max-model-len", str(MAX_MODEL_LEN))
    with serve(model_dir, tmp_path_factory.mktemp("run"), *flags) as running:
        yield running
        processes = psutil.Process(running.process.pid).children(recursive=True)
        assert len(processes) >= 7  # scheduler, router, launcher, and two ranks with a link each
    assert running.process.returncode == 0
    assert [process for process in processes if process.is_running()] == []


def ranks(server: Server) -> list[int]:
    """Process ids, in rank order."""
    rows = server.rows()
    return [row["pid"] for row in rows if row["name"] in ("worker-0[0]", "worker-0[1]")]


async def stream(server: Server, prompt: Prompt) -> AsyncIterator[int]:
    """Tokens of a greedy answer as they come."""
    request = inference_pb2.GenerateRequest(
        tokens=inference_pb2.TokenIds(ids=prompt.token_ids),
        sampling=inference_pb2.SamplingOptions(
            temperature=0.0, max_tokens=NUM_OUTPUT_TOKENS, ignore_eos=prompt.ignore_eos
        ),
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        async for piece in inference_pb2_grpc.InferenceServiceStub(channel).Generate(request):
            for token_id in piece.token_ids:
                yield token_id


async def answers(server: Server, prompts: list[Prompt]) -> list[list[int]]:
    """Of all prompts at once."""

    async def answer(prompt: Prompt) -> list[int]:
        return [token_id async for token_id in stream(server, prompt)]

    return await asyncio.gather(*(answer(prompt) for prompt in prompts))


async def answer_with(server: Server, prompt: Prompt, disturb: Callable[[], None]) -> list[int]:
    """The answer to a prompt, disturbed once in mid-stream."""
    tokens: list[int] = []
    async for token_id in stream(server, prompt):
        tokens.append(token_id)
        if len(tokens) == KILL_AFTER:
            disturb()
    return tokens


async def test_two_ranks_say_what_one_says(
    server: Server, reference: Reference, prompts: list[Prompt]
) -> None:
    few = prompts[1:5] + prompts[17:19]
    for prompt, output in zip(few, await answers(server, few), strict=True):
        reference.check(prompt, output)


@pytest.mark.slow
async def test_two_ranks_keep_to_a_grammar(server: Server) -> None:
    """Each makes the masks itself: did they differ, the sums of the ranks would mean nothing."""
    asked = [HARD[name] for name in ("nested references", "unicode", "a date by regex")]
    body = {"prompt": "Well:", "temperature": 1, "seed": 8, "max_tokens": 200}
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        for language in asked:
            response = await client.post("/v1/completions", json=body | language.fields)
            choice = response.json()["choices"][0]
            assert choice["finish_reason"] == "stop"
            language.check(choice["text"])


@pytest.mark.slow
async def test_two_ranks_say_what_one_says_to_all_prompts(
    server: Server, reference: Reference, prompts: list[Prompt]
) -> None:
    for prompt, output in zip(prompts, await answers(server, prompts), strict=True):
        reference.check(prompt, output)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("rank", "number"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        # Nobody's stream breaks: the others wait in a collective until its limit.
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
async def test_a_lost_rank_is_a_pause_and_costs_no_token(
    server: Server, reference: Reference, prompts: list[Prompt], rank: int, number: signal.Signals
) -> None:
    prompt = prompts[18]
    before = ranks(server)
    tokens = await answer_with(server, prompt, lambda: os.kill(before[rank], number))
    reference.check(prompt, tokens)
    after = ranks(server)
    assert set(after).isdisjoint(before), "the whole group is formed anew"


@pytest.mark.slow
@pytest.mark.chaos
async def test_ranks_keep_their_weights_when_the_scheduler_is_lost(
    server: Server, reference: Reference, prompts: list[Prompt]
) -> None:
    before = ranks(server)
    scheduler = server.processes()["scheduler"]
    tokens = await answer_with(server, prompts[18], lambda: os.kill(scheduler, signal.SIGKILL))
    reference.check(prompts[18], tokens)
    assert ranks(server) == before


@pytest.mark.slow
def test_too_many_ranks_end_the_stack_with_one_line(model_dir: Path, tmp_path: Path) -> None:
    flags = ("--tensor-parallel-size", "4", "--max-model-len", "64")
    with pytest.raises(AssertionError) as failure, serve(model_dir, tmp_path, *flags):
        pass
    errors = [line for line in str(failure.value).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--tensor-parallel-size is 4; this model has 9 query heads and 3 key" in errors[0]
    assert "Traceback" not in str(failure.value)
