"""/tokenize and /detokenize, as vLLM has them."""

import json
from typing import Any

import httpx
import pytest

from router.server import Router
from tests.openai_spec import events
from tests.router.fake_scheduler import FakeScheduler

TEXT = "naïve 東京 🙂 <|im_end|>"
HELLO = [{"role": "user", "content": "hello"}]


async def test_there_and_back(http: httpx.AsyncClient, router: Router) -> None:
    told = (await http.post("/tokenize", json={"model": "tiny", "prompt": TEXT})).json()
    tokenizer = router.backend.model.tokenizer
    assert told == {
        "count": len(told["tokens"]),
        "max_model_len": 256,
        "tokens": tokenizer.encode(TEXT, add_special_tokens=True),
    }
    back = await http.post("/detokenize", json={"tokens": told["tokens"]})
    assert back.json() == {"prompt": TEXT}


async def test_each_token_as_text(http: httpx.AsyncClient) -> None:
    asked = {"prompt": "the <|im_end|>", "return_token_strs": True, "add_special_tokens": False}
    told = (await http.post("/tokenize", json=asked)).json()
    assert "".join(told["token_strs"]) == "the <|im_end|>"
    assert told["token_strs"][-1] == "<|im_end|>"
    assert len(told["token_strs"]) == told["count"]


async def test_a_conversation_is_the_prompt_of_a_chat(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    told = (await http.post("/tokenize", json={"messages": HELLO})).json()
    await http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
    [submit] = scheduler.submits
    assert told["count"] == submit.num_prompt_tokens
    raw = b"".join(token.to_bytes(4, "little") for token in told["tokens"])
    assert submit.token_id == raw
    open_end = {"messages": HELLO, "add_generation_prompt": False}
    shorter = (await http.post("/tokenize", json=open_end)).json()["tokens"]
    assert shorter == told["tokens"][: len(shorter)]
    assert len(shorter) < told["count"]


async def test_a_chat_says_its_prompts_tokens_beside_its_choices(http: httpx.AsyncClient) -> None:
    """Where vLLM says them: once, as all choices have the same prompt."""
    prompt = (await http.post("/tokenize", json={"messages": HELLO})).json()["tokens"]
    asked = {"messages": HELLO, "n": 2, "max_tokens": 3, "return_token_ids": True}
    whole = (await http.post("/v1/chat/completions", json=asked)).json()
    assert whole["prompt_token_ids"] == prompt
    response = await http.post("/v1/chat/completions", json=asked | {"stream": True})
    chunks = [event for _, event in events(response.text) if event != "[DONE]"]
    for choice in whole["choices"]:
        assert set(choice) & {"token_ids", "prompt_token_ids"} == {"token_ids"}
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert [c.get("prompt_token_ids") for c in own] == [prompt] + [None] * (len(own) - 1)
        assert [t for c in own for t in c["choices"][0]["token_ids"]] == choice["token_ids"]


async def test_what_is_too_long_to_be_answered_is_tokenized(http: httpx.AsyncClient) -> None:
    for body in ({"prompt": "x" * 5000}, {"messages": [{"role": "user", "content": "x" * 5000}]}):
        assert (await http.post("/tokenize", json=body)).json()["count"] > 256


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("tokenize", {}, 400, "prompt"),
        ("tokenize", {"prompt": 3}, 400, "prompt"),
        ("tokenize", {"prompt": "x", "messages": HELLO}, 400, "prompt"),
        ("tokenize", {"messages": []}, 400, "messages"),
        ("tokenize", {"messages": HELLO, "add_special_tokens": True}, 400, "add_special_tokens"),
        ("tokenize", {"prompt": "x", "model": "other"}, 404, "model"),
        ("tokenize", {"prompt": "\ud800"}, 400, "prompt"),
        ("detokenize", {}, 400, "tokens"),
        ("detokenize", {"tokens": "x"}, 400, "tokens"),
        ("detokenize", {"tokens": [400]}, 400, "tokens"),
        ("detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("detokenize", {"tokens": [10**30]}, 400, "tokens"),
        ("detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
async def test_what_is_wrong(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    headers = {"content-type": "application/json"}
    response = await http.post(f"/{path}", content=json.dumps(body), headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_load_counts_what_is_being_answered(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    assert (await http.get("/load")).json() == {"server_load": 0}
    scheduler.hold_at = 1
    body = {"prompt": "xyz", "stream": True}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        assert await anext(response.aiter_lines())
        assert (await http.get("/load")).json() == {"server_load": 1}
        scheduler.hold_at = None
