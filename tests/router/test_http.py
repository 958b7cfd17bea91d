"""Real clients over HTTP: the official package and plain requests."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from router.server import Router
from tests.router.fake_scheduler import FakeScheduler

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = "user\nhello"
"""The chat template's prompt, repeated up to its first end token."""


async def test_a_chat_is_answered(client: openai.AsyncOpenAI) -> None:
    response = await client.chat.completions.create(**CHAT)
    choice = response.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.finish_reason == "stop"
    assert response.usage is not None
    assert response.usage.prompt_tokens_details is not None
    assert response.usage.prompt_tokens_details.cached_tokens == response.usage.prompt_tokens - 1
    assert response.id.startswith("chatcmpl-")


async def test_a_chat_is_streamed_with_usage(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**CHAT)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
    ]
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == ANSWER
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == [
        "stop"
    ]
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_sixty_four_streams_are_each_complete(client: openai.AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=f"the fox {number} 🙂 ", max_tokens=120, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    texts = await asyncio.gather(*(one(number) for number in range(64)))
    for number, text in enumerate(texts):
        prompt = f"the fox {number} 🙂 "
        assert len(text) > 2 * len(prompt)
        assert (prompt * 120).startswith(text.rstrip("\ufffd"))


async def test_samples_and_prompts_are_numbered_together(client: openai.AsyncOpenAI) -> None:
    response = await client.completions.create(
        model="tiny", prompt=["xyz", "zyx"], n=2, max_tokens=3
    )
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in response.choices] == ["xyz", "xyz", "zyx", "zyx"]
    assert {choice.finish_reason for choice in response.choices} == {"length"}
    assert response.usage is not None
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (6, 12)


async def test_the_best_samples_come_first_and_all_are_counted(
    client: openai.AsyncOpenAI, scheduler: FakeScheduler
) -> None:
    scheduler.doubts = [3.0, 1.0, 2.0]
    response = await client.completions.create(
        model="tiny", prompt="xyz", best_of=3, n=2, max_tokens=2, logprobs=0
    )
    assert [choice.index for choice in response.choices] == [0, 1]
    kept = [choice.logprobs.token_logprobs for choice in response.choices if choice.logprobs]
    assert kept == [[-1, -2], [-2, -4]]
    assert response.usage is not None
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (3, 6)
    quiet = await client.completions.create(model="tiny", prompt="xyz", best_of=3, max_tokens=2)
    assert [choice.logprobs for choice in quiet.choices] == [None]


@pytest.mark.parametrize("include_usage", [False, True])
async def test_every_chunk_tells_the_usage_so_far(
    client: openai.AsyncOpenAI, include_usage: bool
) -> None:
    options = {"include_usage": include_usage, "continuous_usage_stats": True}
    stream = await client.completions.create(
        model="tiny",
        prompt=["xyz", "zy"],
        max_tokens=4,
        stream=True,
        extra_body={"stream_options": options},
    )
    chunks = [chunk async for chunk in stream]
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == len(chunks)
    assert {usage.prompt_tokens for usage in usages} == {5}
    counts = [usage.completion_tokens for usage in usages]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert usages[-1].total_tokens == 13
    assert (chunks[-1].choices == []) == include_usage


async def test_samples_share_one_submission(
    client: openai.AsyncOpenAI, scheduler: FakeScheduler
) -> None:
    await client.completions.create(model="tiny", prompt="xyz", n=3, seed=7, max_tokens=1)
    (submit,) = scheduler.submits
    assert (submit.num_samples, submit.seed, submit.num_prompt_tokens) == (3, 7, 3)


async def test_tokens_and_echo(client: openai.AsyncOpenAI) -> None:
    plain = await client.completions.create(model="tiny", prompt="xyz", max_tokens=3)
    response = await client.completions.create(
        model="tiny",
        prompt="xyz",
        max_tokens=3,
        echo=True,
        extra_body={"return_token_ids": True},
    )
    choice = response.choices[0].model_dump()
    assert choice["text"] == "xyz" + plain.choices[0].text
    assert choice["token_ids"] == choice["prompt_token_ids"]
    stream = await client.completions.create(
        model="tiny", prompt="xyz", max_tokens=3, echo=True, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "xyzxyz"


async def test_logprobs_of_chats(client: openai.AsyncOpenAI, router: Router) -> None:
    response = await client.chat.completions.create(
        **CHAT, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = response.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    tokenizer = router.backend.model.tokenizer
    assert logprobs.content[0].token == "<|im_start|>"
    assert [entry.logprob for entry in logprobs.content] == [-1, -2, -3]
    top = [(entry.token, entry.logprob) for entry in logprobs.content[0].top_logprobs]
    assert top == [(tokenizer.bytes_of[10].decode(), -10), (tokenizer.bytes_of[11].decode(), -11)]


async def test_every_choice_has_the_keys_that_openai_requires(http: httpx.AsyncClient) -> None:
    """`logprobs` among them, null where nobody asked for any; of a chunk of a chat, too."""
    for path, body, required in (
        ("chat/completions", CHAT, {"index", "message", "finish_reason", "logprobs"}),
        ("completions", {"prompt": "xyz"}, {"index", "text", "finish_reason", "logprobs"}),
    ):
        asked = body | {"max_tokens": 3}
        [whole] = (await http.post(f"/v1/{path}", json=asked)).json()["choices"]
        assert required <= whole.keys()
        assert whole.get("message", {"refusal": None})["refusal"] is None
        stream = (await http.post(f"/v1/{path}", json=asked | {"stream": True})).text
        events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
        chunks = [json.loads(event)["choices"][0] for event in events if event != "[DONE]"]
        for chunk in chunks:
            assert {"delta" if key == "message" else key for key in required} <= chunk.keys()
            assert chunk["logprobs"] is None


async def test_logprobs_of_completions(client: openai.AsyncOpenAI) -> None:
    response = await client.completions.create(model="tiny", prompt="xyz", max_tokens=3, logprobs=1)
    logprobs = response.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["x", "y", "z"]
    assert logprobs.token_logprobs == [-1, -2, -3]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs is not None
    assert [list(top.values()) for top in logprobs.top_logprobs] == [
        [-10, -1],
        [-10, -2],
        [-10, -3],
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_it_here_and_at_the_scheduler(
    client: openai.AsyncOpenAI, scheduler: FakeScheduler, stream: bool
) -> None:
    request: dict[str, Any] = {
        "model": "tiny",
        "prompt": "xqzqx",
        "max_tokens": 200,
        "stop": ["zq"],
    }
    if stream:
        chunks = [chunk async for chunk in await client.completions.create(**request, stream=True)]
        text = "".join(chunk.choices[0].text for chunk in chunks)
        end = chunks[-1].choices[0]
    else:
        response = await client.completions.create(**request)
        end = response.choices[0]
        text = end.text
        assert response.usage is not None
        assert response.usage.completion_tokens == 4
    assert (text, end.finish_reason) == ("xq", "stop")
    assert end.model_dump()["stop_reason"] == "zq"
    assert [tokens for _, tokens in scheduler.finishes] == [4]


async def test_models(client: openai.AsyncOpenAI) -> None:
    listed = await client.models.list()
    assert [model.id for model in listed.data] == ["tiny"]
    assert (await client.models.retrieve("tiny")).model_dump()["max_model_len"] == 256
    with pytest.raises(openai.NotFoundError, match="other"):
        await client.models.retrieve("other")


async def test_requests_keep_their_names(http: httpx.AsyncClient) -> None:
    named = await http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "abc"})
    assert named.headers["x-request-id"] == "abc"
    assert named.json()["id"] == "chatcmpl-abc"
    unnamed = [await http.post("/v1/chat/completions", json=CHAT) for _ in range(2)]
    assert len({response.headers["x-request-id"] for response in unnamed}) == 2
    wrong = await http.get("/health", headers={"x-request-id": "a b"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "X-Request-Id")


async def test_the_stream_is_server_sent_events(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk
        assert event == f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}"


async def test_probes_and_version(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).json() == {"status": "alive"}
    assert (await http.get("/ready")).json() == {"status": "ready"}
    assert (await http.get("/version")).json()["version"]
