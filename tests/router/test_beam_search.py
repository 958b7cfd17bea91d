"""Beam search: transformers' beams, and what becomes of a search that is disturbed."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from gateway.beams import BeamOptions
from gateway.output import TokenLogprob
from router.beam_search import BeamSearch
from router.server import Router
from tests.router.conftest import Until
from tests.router.fake_scheduler import FakeScheduler
from tests.worker.builders import write_tiny_llama

SEARCH = {"prompt": "xyz", "use_beam_search": True, "n": 2, "max_tokens": 3}
PROMPT = [5, 17, 60, 121]
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory: Path = write_tiny_llama(tmp_path_factory.mktemp("models") / "llama")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def continuations(model: Any, beams: Sequence[Sequence[int]], count: int) -> list[Any]:
    with torch.inference_mode():
        logits = model(torch.tensor([[*PROMPT, *beam] for beam in beams])).logits[:, -1]
    top = logits.log_softmax(dim=1).topk(count)
    return [
        [TokenLogprob(int(t), float(p), 1, ()) for t, p in zip(tokens, logprobs, strict=True)]
        for tokens, logprobs in zip(top.indices, top.values, strict=True)
    ]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize(("width", "num_ends"), [(1, 1), (3, 1), (4, 40), (2, 120)])
def test_the_beams_are_transformers_own(
    model: Any,
    width: int,
    num_ends: int,
    length_penalty: float,
    early_stopping: bool | Literal["never"],
) -> None:
    """With many tokens that end an answer, answers of all lengths compete."""
    ends = list(range(300 - num_ends, 300))
    config = GenerationConfig(
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_token_id=ends,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    if width == 1:  # `generate` does not search then
        config.length_penalty = config.early_stopping = None
    ids = torch.tensor([PROMPT])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)

    options = BeamOptions(width=width, length_penalty=length_penalty, early_stopping=early_stopping)
    search = BeamSearch(options, MAX_TOKENS, frozenset(ends))
    count = options.num_candidates(num_ends)
    while not search.is_over:
        beams = [[token.token_id for token in beam.tokens] for beam in search.running]
        search.step(continuations(model, beams, min(count, 320)))

    found = [[token.token_id for token in beam.tokens] for beam in search.ended]
    sequences = expected.sequences[:, len(PROMPT) :].tolist()
    assert len(found) == len(sequences) == width
    for beam, sequence in zip(found, sequences, strict=True):  # which is padded
        assert sequence[: len(beam)] == beam
        assert len(beam) == MAX_TOKENS or beam[-1] in ends
    if width > 1:
        scores = [beam.score for beam in search.ended]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), rel=1e-5, abs=1e-4)


async def test_the_best_beams_are_the_answer(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    """After anything the fake model finds token 10 likeliest, then 11, ..."""
    body = SEARCH | {"logprobs": 1, "return_token_ids": True, "best_of": 3}
    answer = (await http.post("/v1/completions", json=body)).json()
    assert [choice["token_ids"][:1] for choice in answer["choices"]] == [[10], [10]]
    assert answer["choices"][0]["token_ids"] == [10, 10, 10]
    assert sorted(answer["choices"][1]["token_ids"]) == [10, 10, 11]
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-10, -10, -10]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 6)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}  # of its first step
    # To the scheduler each beam of each step is a request of one token, and none is a probe.
    assert [submit.max_tokens for submit in scheduler.submits] == [1] * 7
    assert not scheduler.running
    metrics = router.backend.metrics
    assert {reason.value: count for reason, count in metrics.finished.items() if count} == {
        "length": 1
    }
    assert (metrics.prompt_tokens, metrics.generation_tokens) == (3, 6)


async def test_a_chat_is_searched(client: openai.AsyncOpenAI) -> None:
    response = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=2,
        n=2,
        extra_body={"use_beam_search": True, "length_penalty": 0.5, "early_stopping": "never"},
    )
    assert len(response.choices) == 2
    assert response.choices[0].message.content


async def test_a_search_goes_on_with_the_next_scheduler(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    expected = (await http.post("/v1/completions", json=SEARCH | {"max_tokens": 60})).json()
    call = asyncio.create_task(http.post("/v1/completions", json=SEARCH | {"max_tokens": 60}))
    await asyncio.sleep(0.1)
    scheduler.kill()
    answer = (await call).json()
    assert answer["choices"] == expected["choices"]


async def test_a_client_that_leaves_ends_the_search(
    http: httpx.AsyncClient, scheduler: FakeScheduler, until: Until
) -> None:
    scheduler.hold_at = 0
    call = asyncio.create_task(http.post("/v1/completions", json=SEARCH))
    await until(lambda: bool(scheduler.running))
    call.cancel()
    await until(lambda: not scheduler.running)
    assert scheduler.aborted
