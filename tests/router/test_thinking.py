"""Thoughts over HTTP: with a signature in Anthropic's dialect, and logprobs of the words alone."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

import quire
from router.server import Router
from tests import openai_spec
from tests.gateway.test_thinking import BEGIN, END, VOCAB, write_thinker
from tests.gateway.tiny_model import EOS
from tests.openai_spec import check, events
from tests.router.conftest import StartRouter
from tests.router.fake_scheduler import FakeScheduler

THOUGHTS, WORDS = "so a fox", "the lazy 🙂 dog"


@pytest.fixture
async def router(
    start_router: StartRouter, scheduler: FakeScheduler, tmp_path: Path
) -> AsyncIterator[Router]:
    """Of a model that thinks, and says the same to all."""
    scheduler.vocab_size = VOCAB
    async with start_router(model=write_thinker(tmp_path / "tiny")) as router:
        encode = router.backend.model.tokenizer.encode
        thoughts = encode(f"\n{THOUGHTS}\n", add_special_tokens=False)
        words = encode(f"\n\n{WORDS}", add_special_tokens=False)
        scheduler.says = [BEGIN, *thoughts, END, *words, EOS]
        yield router


@pytest.fixture
async def http(router: Router) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=router.address, timeout=20) as client:
        yield client


async def test_thoughts_have_a_signature_as_anthropics_do(
    router: Router, http: httpx.AsyncClient
) -> None:
    """Clients send it back with them."""
    asked: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "hello"}],
        "thinking": {"type": "enabled", "budget_tokens": 30},
    }
    async with anthropic.AsyncAnthropic(
        base_url=router.address, api_key="none", max_retries=0, timeout=20
    ) as claude:
        whole = await claude.messages.create(**asked)
        async with claude.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        thinking, text = whole.content
        assert thinking.type == "thinking"
        assert thinking.thinking.strip() == THOUGHTS
        assert thinking.signature
        assert (text.type, getattr(text, "text", None)) == ("text", WORDS)
        assert streamed.model_dump()["content"][0] == thinking.model_dump()
        assert getattr(streamed.content[1], "text", None) == WORDS
        turn: Any = whole.to_param()
        goes_on = [*asked["messages"], turn, {"role": "user", "content": "and?"}]
        assert (await claude.messages.create(**(asked | {"messages": goes_on}))).content
    answer = await http.post("/v1/messages", json=asked | {"stream": True})
    told = [event for _, event in events(answer.text)]
    kinds = [event["delta"]["type"] for event in told if event["type"] == "content_block_delta"]
    assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta"]
    assert kinds.count("signature_delta") == 1
    signed = next(i for i, event in enumerate(told) if "signature" in event.get("delta", {}))
    assert told[signed + 1] == {"type": "content_block_stop", "index": 0}


async def test_the_grammar_of_a_budget_reaches_the_scheduler(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    asked = {
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "hello"}],
        "thinking": {"type": "enabled", "budget_tokens": 30},
    }
    assert (await http.post("/v1/messages", json=asked)).status_code == 200
    assert "{0,30}" in scheduler.submits[-1].sampling.grammar
    assert list(scheduler.submits[-1].sampling.stop_token_ids) == [EOS]


@openai_spec.needs_spec
async def test_only_words_have_logprobs(http: httpx.AsyncClient) -> None:
    asked = {"input": "hello", "include": ["message.output_text.logprobs"], "stream": True}
    told = [event for _, event in events((await http.post("/v1/responses", json=asked)).text)]
    for event in told:
        check(event, "ResponseStreamEvent")
    reasoning, message = told[-1]["response"]["output"]
    assert reasoning["content"][0]["text"].strip() == THOUGHTS
    [part] = message["content"]
    assert part["text"] == WORDS
    spelt = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode()
    assert spelt.lstrip("\n") == WORDS  # a token may begin before the words do
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == part["logprobs"]
    whole = (await http.post("/v1/responses", json=asked | {"stream": False})).json()
    assert whole["output"][1]["content"] == [part]


async def test_tokens_of_thoughts_are_counted_alike_everywhere(
    router: Router, http: httpx.AsyncClient
) -> None:
    encode = router.backend.model.tokenizer.encode
    num_thought = len(encode(THOUGHTS, add_special_tokens=False))
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "n": 2}
    whole = (await http.post("/v1/chat/completions", json=chat)).json()
    details = whole["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": 2 * num_thought}
    streamed = chat | {"stream": True, "stream_options": {"include_usage": True}}
    lines = (await http.post("/v1/chat/completions", json=streamed)).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["usage"] == whole["usage"]
    asked = {"input": "hello", "stream": True}
    told = [event for _, event in events((await http.post("/v1/responses", json=asked)).text)]
    response = (await http.post("/v1/responses", json={"input": "hello"})).json()
    for usage in (response["usage"], told[-1]["response"]["usage"]):
        assert usage["output_tokens_details"] == {"reasoning_tokens": num_thought}
    async with quire.AsyncClient(router.grpc_address) as client:
        prompt = quire.Chat(chat["messages"])
        both = await client.generate(prompt, quire.SamplingParams(n=2, max_tokens=None))
        assert [output.num_thought_tokens for output in both.outputs] == [num_thought] * 2
        stream = client.stream(prompt, quire.SamplingParams(max_tokens=None))
        ends = [chunk.usage async for chunk in stream if chunk.usage is not None]
        assert [usage.num_thought_tokens for usage in ends] == [num_thought]
        plain = await client.generate("hello")
        assert plain.outputs[0].num_thought_tokens == 0
