"""Every response, stream event and error is valid by OpenAI's specification."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router import known_cell
from router.server import Router
from tests import openai_spec
from tests.openai_spec import check, events
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

pytestmark = openai_spec.needs_spec

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "the quick brown fox 🙂"}]}
COMPLETION: dict[str, Any] = {"prompt": "xyz", "max_tokens": 5}
USAGE = {"stream_options": {"include_usage": True}}

CHATS: list[dict[str, Any]] = [
    {},
    {"n": 3, "max_tokens": 4},
    {"logprobs": True, "top_logprobs": 3, "max_tokens": 4},
    {"logprobs": True, "n": 2},
    {"stop": "fox"},
    {"return_token_ids": True},
]
ALL_USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
COMPLETIONS: list[dict[str, Any]] = [
    {},
    {"prompt": ["xyz", "zyx"], "n": 2},
    {"prompt": [[5, 6], [7]]},
    {"logprobs": 2},
    {"logprobs": 0, "n": 2},
    {"echo": True},
    {"stop": ["z"]},
    {"return_token_ids": True},
]
WHOLE_CHATS: list[dict[str, Any]] = [
    # What is not streamed.
    {"use_beam_search": True, "n": 2, "max_tokens": 3},
    {"prompt_logprobs": 1, "max_tokens": 3},
]
WHOLE_COMPLETIONS: list[dict[str, Any]] = [
    {"use_beam_search": True, "n": 2},
    {"best_of": 3, "n": 2},
    {"prompt_logprobs": 1},
    {"echo": True, "logprobs": 1},
    {"echo": True, "logprobs": 0, "max_tokens": 0},
]


@pytest.mark.parametrize("said", CHATS + WHOLE_CHATS, ids=str)
async def test_chat_completions(http: httpx.AsyncClient, said: dict[str, Any]) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | said)
    assert response.status_code == 200
    check(response.json(), "CreateChatCompletionResponse")


@pytest.mark.parametrize("said", CHATS, ids=str)
@pytest.mark.parametrize("usage", [{}, USAGE, ALL_USAGE], ids=["", "usage", "all usage"])
async def test_chat_completion_chunks(
    http: httpx.AsyncClient, said: dict[str, Any], usage: dict[str, Any]
) -> None:
    body = CHAT | said | usage | {"stream": True}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    *chunks, (_, done) = events(response.text)
    assert done == "[DONE]"
    for _, chunk in chunks:
        check(chunk, "CreateChatCompletionStreamResponse")
    told = [choice for _, chunk in chunks for choice in chunk["choices"]]
    for index in range(said.get("n", 1)):
        own = [choice for choice in told if choice["index"] == index]
        assert [c["delta"].get("role") for c in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [bool(c["finish_reason"]) for c in own] == [False] * (len(own) - 1) + [True]
    assert [not chunk["choices"] for _, chunk in chunks].count(True) == bool(usage)


@pytest.mark.parametrize("said", COMPLETIONS + WHOLE_COMPLETIONS, ids=str)
async def test_completions(http: httpx.AsyncClient, said: dict[str, Any]) -> None:
    """A prompt's first token follows nothing, so its logprob is null; OpenAI's server wrote it so,
    and evaluation harnesses count on it, though the specification knows only numbers there."""
    response = await http.post("/v1/completions", json=COMPLETION | said)
    assert response.status_code == 200
    answer = response.json()
    if said.get("echo") and "logprobs" in said:
        for choice in answer["choices"]:
            for column in ("token_logprobs", "top_logprobs"):
                assert choice["logprobs"][column].pop(0) is None
    check(answer, "CreateCompletionResponse")


@pytest.mark.parametrize("said", COMPLETIONS, ids=str)
async def test_completion_chunks(http: httpx.AsyncClient, said: dict[str, Any]) -> None:
    """The specification has no schema of a chunk: it is a response in which, as OpenAI's own
    server has it, the reason is null until a choice ends."""
    body = COMPLETION | said | USAGE | {"stream": True}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200
    *chunks, (_, done) = events(response.text)
    assert done == "[DONE]"
    for _, chunk in chunks:
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        if chunk["usage"] is None:
            del chunk["usage"]
        check(chunk, "CreateCompletionResponse")


@pytest.mark.parametrize("given", ["x", ["xyz", "x"], [5, 6], [[5], [6, 7]]], ids=str)
async def test_embeddings(start_router: StartRouter, scheduler: FakeScheduler, given: Any) -> None:
    """As numbers: the specification has no other form, though OpenAI's own server writes base64."""
    scheduler.embedding_dim = 4
    async with (
        start_router() as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        response = await http.post("/v1/embeddings", json={"model": "tiny", "input": given})
        assert response.status_code == 200
        check(response.json(), "CreateEmbeddingResponse")


async def test_models(http: httpx.AsyncClient) -> None:
    check((await http.get("/v1/models")).json(), "ListModelsResponse")
    check((await http.get("/v1/models/tiny")).json(), "Model")


ERRORS: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/v1/chat/completions", {"content": b"{", "headers": {}}, 415),
    ("POST", "/v1/chat/completions", {"json": []}, 400),
    ("POST", "/v1/chat/completions", {"json": {"messages": []}}, 400),
    ("POST", "/v1/chat/completions", {"json": {**CHAT, "n": 0}}, 400),
    ("POST", "/v1/chat/completions", {"json": {**CHAT, "model": "other"}}, 404),
    ("POST", "/v1/completions", {"json": {"prompt": [5] * 256}}, 400),
    ("POST", "/v1/completions", {"json": {"prompt": "x" * (1 << 20)}}, 413),
    ("POST", "/v1/embeddings", {"json": {"input": "x"}}, 400),
    ("POST", "/v1/embeddings", {"json": {}}, 400),
    ("POST", "/v1/responses", {"json": {"input": 3}}, 400),
    ("POST", "/v1/responses", {"json": {"input": "x", "previous_response_id": "r"}}, 404),
    ("POST", "/v1/responses", {"content": b"x", "headers": {}}, 415),
    ("GET", "/v1/responses/nothing", {}, 404),
    ("DELETE", "/v1/responses/nothing", {}, 404),
    ("PUT", "/v1/responses/nothing", {}, 405),
    ("POST", "/tokenize", {"json": {}}, 400),
    ("POST", "/detokenize", {"json": {"tokens": [400]}}, 400),
    ("GET", "/v1/models/other", {}, 404),
    ("GET", "/v1/nothing", {}, 404),
    ("GET", "/v1/chat/completions", {}, 405),
]


@pytest.mark.parametrize(("method", "path", "sent", "status"), ERRORS)
async def test_errors(
    http: httpx.AsyncClient, method: str, path: str, sent: dict[str, Any], status: int
) -> None:
    response = await http.request(method, path, **sent)
    assert response.status_code == status
    check(response.json(), "ErrorResponse")


@pytest.fixture
async def guarded(start_router: StartRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        start_router(api_key="secret") as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        yield http


async def test_the_error_of_a_wrong_key(guarded: httpx.AsyncClient) -> None:
    response = await guarded.get("/v1/models", headers={"authorization": "Bearer wrong"})
    assert response.status_code == 401
    check(response.json(), "ErrorResponse")


async def test_the_error_of_a_lost_worker(
    http: httpx.AsyncClient,
    router: Router,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_cell, "HOLD_S", 0.0)  # nobody is expected back
    scheduler.replica_ids = []
    scheduler.tell_status()
    await until(lambda: not router.backend.readiness.is_ready())
    for response in (
        await http.get("/ready"),
        await http.post("/v1/chat/completions", json=CHAT),
    ):
        assert response.status_code == 503
        check(response.json(), "ErrorResponse")


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", CHAT), ("completions", COMPLETION)]
)
async def test_the_error_in_a_stream(
    http: httpx.AsyncClient, scheduler: FakeScheduler, path: str, body: dict[str, Any]
) -> None:
    scheduler.hold_at = 4
    async with http.stream("POST", f"/v1/{path}", json=body | {"stream": True}) as response:
        text = ""
        async for part in response.aiter_text():
            text += part
            scheduler.error = "the numbers came out wrong"
            scheduler.hold_at = None
    *_, (_, last) = events(text)
    check(last, "ErrorResponse")


async def test_the_judge_says_no(http: httpx.AsyncClient) -> None:
    whole = (await http.post("/v1/chat/completions", json=CHAT)).json()
    for spoilt in (
        {**whole, "object": "chat"},
        {**whole, "usage": {"prompt_tokens": 1}},
        {**whole, "choices": [{**whole["choices"][0], "finish_reason": "eos"}]},
        {name: value for name, value in whole.items() if name != "created"},
    ):
        with pytest.raises(AssertionError, match="not a CreateChatCompletionResponse"):
            check(spoilt, "CreateChatCompletionResponse")
    with pytest.raises(AssertionError, match="param"):
        check({"error": {"message": "", "type": "", "code": None}}, "ErrorResponse")
