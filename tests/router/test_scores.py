"""Scoring prompts: `prompt_logprobs`, and echo with logprobs, as evaluation harnesses ask."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from router.server import Router
from tests.router.conftest import Until
from tests.router.fake_scheduler import FakeScheduler

PROMPT = "xyz🙂a"
"""The emoji is of several tokens."""
SCORED = {"model": "tiny", "prompt": PROMPT, "echo": True, "logprobs": 1}


async def completion(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/completions", json={**SCORED, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def token_ids(router: Router, text: str = PROMPT) -> list[int]:
    return router.backend.model.tokenizer.encode(text, add_special_tokens=True)


async def test_an_echoed_prompt_has_logprobs_like_the_output(
    http: httpx.AsyncClient, router: Router
) -> None:
    tokens = token_ids(router)
    body = await completion(http, max_tokens=2)
    [choice] = body["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == PROMPT + "xy"
    assert logprobs["token_logprobs"] == [None, *range(-1, -len(tokens), -1), -1, -2]
    assert [name for name in logprobs["tokens"] if not name.startswith("bytes:")] == [*"xyzaxy"]
    assert logprobs["top_logprobs"][0] is None
    # An evaluation harness sees by this that the prompt's token was the likeliest.
    for logprob, top in zip(
        logprobs["token_logprobs"][1:-2], logprobs["top_logprobs"][1:-2], strict=True
    ):
        assert max(top.values()) == logprob
    emoji = len(tokens) - 4
    assert emoji > 1
    assert logprobs["text_offset"] == [0, 1, 2, *[3] * emoji, 4, 5, 6]
    assert body["usage"]["completion_tokens"] == 2


async def test_a_prompt_is_scored_without_any_output(
    http: httpx.AsyncClient, router: Router
) -> None:
    tokens = token_ids(router)
    prompts = [tokens, tokens[:3], tokens[:1]]
    body = await completion(http, prompt=prompts, max_tokens=0)
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * 3
    assert [choice["text"] for choice in body["choices"]] == [PROMPT, "xyz", "x"]
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"] == [None, *range(-1, -len(prompt), -1)]
        assert {len(column) for column in logprobs.values()} == {len(prompt)}
    num_prompt_tokens = sum(map(len, prompts))
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == num_prompt_tokens
    assert body["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("max_tokens", [0, 2])
async def test_a_stream_begins_with_the_prompt_and_its_logprobs(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, max_tokens: int
) -> None:
    whole = await completion(http, max_tokens=max_tokens)
    stream = await client.completions.create(
        model="tiny", prompt=PROMPT, echo=True, logprobs=1, max_tokens=max_tokens, stream=True
    )
    text = ""
    columns: dict[str, list[Any]] = {name: [] for name in whole["choices"][0]["logprobs"]}
    finishes = []
    async for chunk in stream:
        [choice] = chunk.choices
        text += choice.text
        finishes += [choice.finish_reason] if choice.finish_reason else []
        assert choice.logprobs is not None
        for name, column in choice.logprobs.model_dump().items():
            columns[name] += column
    assert (text, finishes) == (whole["choices"][0]["text"], ["length"])
    assert columns == whole["choices"][0]["logprobs"]


async def test_prompt_logprobs_of_a_completion(http: httpx.AsyncClient, router: Router) -> None:
    tokens = token_ids(router, "xyz")
    body = {"prompt": "xyz", "prompt_logprobs": 2, "echo": False, "logprobs": None, "n": 2}
    answer = await completion(http, **body, max_tokens=1)
    text = router.backend.model.tokenizer.bytes_of[10].decode()
    for choice in answer["choices"]:
        assert choice["logprobs"] is None
        assert choice["prompt_logprobs"] == [
            None,
            *(
                {
                    str(token): {"logprob": -index, "rank": 1, "decoded_token": letter},
                    "10": {"logprob": -101, "rank": 2, "decoded_token": text},
                }
                for index, (token, letter) in enumerate(zip(tokens[1:], "yz", strict=True), start=1)
            ),
        ]


async def test_prompt_logprobs_of_a_chat(http: httpx.AsyncClient) -> None:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "prompt_logprobs": 0,
        "max_tokens": 2,
    }
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    scores = answer["prompt_logprobs"]
    assert len(scores) == answer["usage"]["prompt_tokens"]
    assert scores[0] is None
    assert [next(iter(entry.values()))["logprob"] for entry in scores[1:]] == [
        -index for index in range(1, len(scores))
    ]
    assert answer["choices"][0]["logprobs"] is None


async def test_samples_share_the_scores_of_their_prompt(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    """The siblings of the sample that scores may be ahead of it: nobody hears of them before."""
    scheduler.scores_at_once = 1
    answer = await completion(http, n=3, max_tokens=1)
    logprobs = [choice["logprobs"] for choice in answer["choices"]]
    assert logprobs[0]["token_logprobs"][:2] == [None, -1]
    assert logprobs[0] == logprobs[1] == logprobs[2]
    [submit] = scheduler.submits
    assert (submit.num_samples, submit.score_from) == (3, 1)


async def test_a_lost_scheduler_is_asked_only_for_the_scores_that_are_missing(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router, until: Until
) -> None:
    expected = await completion(http, n=2, max_tokens=2)
    scheduler.submits.clear()
    scheduler.scores_at_once = 2
    scheduler.hold_scores_at = 3
    call = asyncio.create_task(completion(http, n=2, max_tokens=2))
    await until(lambda: any(s.score_from == 3 for s in scheduler.running.values()))
    await asyncio.sleep(0.05)  # what was told is on its way
    scheduler.kill()
    scheduler.hold_scores_at = None
    answer = await call
    assert answer["choices"] == expected["choices"]
    again = {submit.score_from for submit in scheduler.submits[1:]}
    assert again <= {3, len(token_ids(router))}
    assert 3 in again


async def test_an_end_without_the_scores_is_an_error(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.loses_scores = True
    response = await http.post("/v1/completions", json={**SCORED, "max_tokens": 1})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the server lost the logprobs of the prompt"
