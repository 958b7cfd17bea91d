"""Whatever is wrong gets its status and OpenAI's error body, and the server serves on."""

import asyncio
import gzip
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from protos.quire.v1 import scheduler_pb2
from router import known_cell
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which must have OpenAI's shape."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def serves(http: httpx.AsyncClient) -> bool:
    return (await http.post(PATH, json=CHAT)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b'{"messages": [], "temperature": NaN}', 400, None),
        (json.dumps({"messages": []}).encode(), 400, "messages"),
        (json.dumps({**CHAT, "n": 0}).encode(), 400, "n"),
        (json.dumps({**CHAT, "n": 10_000}).encode(), 400, "n"),
        (json.dumps({**CHAT, "max_tokens": 0}).encode(), 400, "max_tokens"),
        (json.dumps({**CHAT, "max_tokens": -4}).encode(), 400, "max_tokens"),
        (json.dumps({**CHAT, "max_tokens": 10**12}).encode(), 400, "max_tokens"),
        (json.dumps({**CHAT, "temperature": -1}).encode(), 400, "temperature"),
        (json.dumps({**CHAT, "model": "other"}).encode(), 404, "model"),
    ],
)
async def test_bad_bodies(
    http: httpx.AsyncClient, body: bytes, status: int, param: str | None
) -> None:
    assert error_of(await http.post(PATH, content=body, headers=JSON), status)["param"] == param
    assert await serves(http)


async def test_a_prompt_over_the_models_length(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": [5] * 256})
    error = error_of(response, 400)
    assert error["code"] == "context_length_exceeded"
    assert "256 tokens; this model accepts at most 256" in error["message"]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit(start_router: StartRouter, declared: bool) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 100_000

    async with (
        start_router(max_body_bytes=1_000_000) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        content = b"x" * 2_000_000 if declared else chunks()
        response = await http.post(PATH, content=content, headers=JSON)
        error = error_of(response, 413)
        assert error["message"] == (
            "the body has 2000000 bytes; this server accepts at most 1000000"
        )
        assert await serves(http)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
    ],
)
async def test_a_wrong_method(
    http: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await http.request(method, path)
    error = error_of(response, 405)
    assert error["code"] == "method_not_allowed"
    assert f"it must be one of {json.dumps(allowed.split(', '))}" in error["message"]
    assert sorted(response.headers["allow"].split(", ")) == allowed.split(", ")


@pytest.mark.parametrize("path", ["/v1", "/v2/models", "/%00"])
async def test_an_unknown_path(http: httpx.AsyncClient, path: str) -> None:
    error = error_of(await http.get(path), 404)
    assert error["code"] == "unknown_url"
    assert error["message"].endswith(" here; see /docs")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions/", "/v1/models/", "/v1/models//", "/v1/models/tiny/", "/docs/"),
        *("/v1/responses/", "/v1/responses/a/", "/v1/responses/a/cancel/", "/health/"),
    ],
)
async def test_no_path_ends_in_a_slash(http: httpx.AsyncClient, method: str, path: str) -> None:
    """Whatever is asked of it."""
    error = error_of(await http.request(method, path), 404)
    assert error["code"] == "unknown_url"
    near = path.rstrip("/")
    assert error["message"] == f'there is no "{path}" here; did you mean "{near}"?'


async def test_the_address_alone_leads_to_the_documents(http: httpx.AsyncClient) -> None:
    for method in ("GET", "HEAD"):
        response = await http.request(method, "/")
        assert (response.status_code, response.headers["location"]) == (307, "/docs")
    assert (await http.get("/", follow_redirects=True)).text.startswith("<!doctype html>")
    assert error_of(await http.post("/"), 405)["code"] == "method_not_allowed"


async def test_the_api_key_guards_all_but_probes(start_router: StartRouter) -> None:
    async with start_router(api_key="secret") as router:
        async with httpx.AsyncClient(base_url=router.address) as http:
            for path in ("/health", "/ready"):
                assert (await http.get(path)).status_code == 200
            for path in ("/v1/models", "/metrics", "/load", "/docs", "/openapi.json"):
                assert (await http.get(path)).status_code == 401
                assert (await http.get(path, headers={"x-api-key": "secret"})).status_code == 200
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "secret"},
                {"x-api-key": "wrong"},
                {"x-api-key": "secret", "authorization": "Bearer wrong"},
            ):
                response = await http.get("/v1/models", headers=headers)
                assert error_of(response, 401)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
            assert (await http.get("/nothing")).status_code == 401
        async with openai.AsyncOpenAI(
            base_url=f"{router.address}/v1", api_key="secret", max_retries=0
        ) as client:
            assert await client.chat.completions.create(model="tiny", **CHAT)


async def test_a_browser_sends_the_key_as_a_password_and_reads_the_documents(
    start_router: StartRouter,
) -> None:
    """It sends the password to every path then, so it must open nothing else."""
    key = "sécret: with a colon"
    async with (
        start_router(api_key=key) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        home = await http.get("/", auth=("anyone", key), follow_redirects=True)
        assert (home.status_code, home.url.path) == (200, "/docs")
        home = await http.get("/")
        assert error_of(home, 401)["code"] == "invalid_api_key"
        assert home.headers["www-authenticate"].startswith("Basic realm=")
        for path in ("/docs", "/openapi.json"):
            refused = await http.get(path)
            assert error_of(refused, 401)["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"].startswith("Basic realm=")
            for name in ("", "anyone"):
                assert (await http.get(path, auth=(name, key))).status_code == 200
            for said in (
                "Basic",
                "Basic !",
                "Basic c8OpY3JldA==",
                "Basic \xff",
                f"Basic {key[2:]}",
            ):
                wrong = await http.get(path, headers={b"authorization": said.encode("latin-1")})
                assert wrong.status_code == 401
            assert (await http.get(path, auth=("anyone", "wrong"))).status_code == 401
        for path in ("/v1/models", "/metrics", "/docs/", "/nothing"):
            refused = await http.get(path, auth=("anyone", key))
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        response = await http.post(PATH, json=CHAT, auth=("anyone", key))
        assert response.status_code == 401


async def test_more_than_may_be_in_flight(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 1
    async with (
        start_router(max_in_flight=1) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        first = asyncio.create_task(http.post(PATH, json=CHAT))
        await until(lambda: len(scheduler.submits) == 1)
        refused = await http.post(PATH, json=CHAT)
        assert error_of(refused, 429)["type"] == "rate_limit_error"
        assert refused.headers["retry-after"] == "1"
        scheduler.hold_at = None
        assert (await first).status_code == 200
        assert await serves(http)


@pytest.mark.parametrize("trouble", ["worker", "draining", "another vocabulary", "another model"])
async def test_nobody_to_serve(
    http: httpx.AsyncClient,
    router: Router,
    scheduler: FakeScheduler,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    monkeypatch.setattr(known_cell, "HOLD_S", 0.0)  # nobody is expected back
    match trouble:
        case "worker":
            scheduler.replica_ids = []
        case "draining":
            scheduler.draining = True
        case "another vocabulary":
            scheduler.vocab_size = 401
        case "another model":
            scheduler.model_name = "other"
    scheduler.tell_status()
    await until(lambda: not router.backend.readiness.is_ready())
    response = await http.post(PATH, json=CHAT)
    assert error_of(response, 503)["code"] == "service_unavailable"
    assert int(response.headers["retry-after"]) >= 1
    assert error_of(await http.get("/ready"), 503)
    assert (await http.get("/health")).status_code == 200


async def test_no_scheduler_at_all(start_router: StartRouter, scheduler: FakeScheduler) -> None:
    async with (
        start_router(until_ready=False, scheduler="127.0.0.1:1") as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        assert (await http.get("/health")).status_code == 200
        error = error_of(await http.post(PATH, json=CHAT), 503)
        assert error["message"] == "the scheduler is not connected"


@pytest.mark.parametrize(
    ("code", "status", "field"),
    [
        (scheduler_pb2.REFUSAL_CODE_INVALID, 400, "max_tokens"),
        (scheduler_pb2.REFUSAL_CODE_OVERLOADED, 429, None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_scheduler_refuses(
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    router: Router,
    code: scheduler_pb2.RefusalCode,
    status: int,
    field: str | None,
    stream: bool,
) -> None:
    """Also a stream gets a proper status: it has not begun."""
    scheduler.refusal = scheduler_pb2.Refusal(code=code, message="why not", field=field or "")
    response = await http.post(PATH, json={**CHAT, "n": 3, "stream": stream})
    error = error_of(response, status)
    assert (error["message"], error["param"]) == ("why not", field)
    assert router.backend.engine._samples == {}
    assert scheduler.aborted == []


async def test_a_refusal_speaks_the_clients_words(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    """Its own speak of Submit's fields, of which the client knows none."""

    async def refused(path: str, body: dict[str, Any]) -> tuple[str, str]:
        error = error_of(await http.post(path, json=body), 400)
        return error["param"], error["message"]

    def refuse(field: str, message: str) -> None:
        code = scheduler_pb2.REFUSAL_CODE_INVALID
        scheduler.refusal = scheduler_pb2.Refusal(code=code, field=field, message=message)

    refuse("token_id", "token_id contains 5; max_tokens is 7")
    asked = {"max_completion_tokens": 7}
    assert await refused(PATH, CHAT | asked) == (
        "messages",
        "messages contains 5; max_completion_tokens is 7",
    )
    assert await refused("/v1/completions", {"prompt": "x"}) == (
        "prompt",
        "prompt contains 5; max_tokens is 7",
    )
    refuse("num_logprobs", "num_logprobs is 21; it must be at least 0 and at most 20")
    assert (await refused(PATH, CHAT))[0] == "top_logprobs"
    refuse("logit_bias_token_id", "logit_bias_token_id contains 9")
    assert await refused(PATH, CHAT) == ("logit_bias", "logit_bias contains 9")
    refuse("bad_word_token_id", "bad_word_token_id has 9 entries; it may have at most 8")
    assert await refused(PATH, CHAT) == (
        "bad_words",
        "bad_words has 9 entries; it may have at most 8",
    )
    refuse("allowed_token_id", "allowed_token_id contains 9")
    assert await refused(PATH, CHAT) == ("allowed_token_ids", "allowed_token_ids contains 9")
    refuse("num_samples", "num_samples is 300")
    assert await refused(PATH, CHAT) == ("n", "n is 300")


async def test_an_error_before_the_first_token_has_a_status(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    scheduler.error = "the numbers came out wrong"
    error = error_of(await http.post(PATH, json={**CHAT, "stream": True}), 500)
    assert error["message"] == "the numbers came out wrong"


async def test_an_error_in_a_stream_is_its_last_event(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 2
    body = {"prompt": "xyz", "stream": True, "max_tokens": 9, "n": 2}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.aiter_lines()
        first = await anext(lines)
        assert first.startswith("data: {")
        scheduler.error = "the numbers came out wrong"
        scheduler.hold_at = None
        rest = [line async for line in lines if line]
    assert response.status_code == 200
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "data: [DONE]" not in rest
    assert router.backend.engine._samples == {}


async def test_a_unix_socket_serves_too(start_router: StartRouter, tmp_path: Path) -> None:
    """Where a router that was killed has left its own."""
    path = tmp_path / "router.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with start_router(uds=path) as router:
        assert router.address == f"unix:{path}"
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as http:
            assert await serves(http)
    assert not path.exists()


@pytest.mark.parametrize("said", [None, "text/plain", "multipart/form-data; boundary=x"])
async def test_a_body_that_is_not_said_to_be_json(
    http: httpx.AsyncClient, scheduler: FakeScheduler, said: str | None
) -> None:
    """A browser sends such bodies to any server without asking it first."""
    headers = {} if said is None else {"content-type": said}
    response = await http.post(PATH, content=json.dumps(CHAT).encode(), headers=headers)
    error = error_of(response, 415)
    assert (error["param"], error["code"]) == ("Content-Type", "unsupported_media_type")
    assert (said or "missing") in error["message"]
    assert scheduler.submits == []


@pytest.mark.parametrize(
    ("said", "charset"),
    [
        ("application/json; charset=latin-1", "latin-1"),
        ('application/json;v=1;CHARSET="UTF-16"', "utf-16"),
    ],
)
async def test_json_in_another_charset(
    http: httpx.AsyncClient, scheduler: FakeScheduler, said: str, charset: str
) -> None:
    content = json.dumps(CHAT).encode()
    error = error_of(await http.post(PATH, content=content, headers={"content-type": said}), 415)
    assert (error["param"], error["code"]) == ("Content-Type", "unsupported_media_type")
    message = f'Content-Type has the charset "{charset}"; JSON must be in UTF-8'
    assert error["message"] == message
    assert scheduler.submits == []


@pytest.mark.parametrize(
    "said",
    [
        *(
            "application/json; charset=utf-8",
            "Application/JSON",
            'application/json;charset="UTF-8"',
        ),
        *("application/json; charset=us-ascii", "application/json;", "application/json; v=1"),
    ],
)
async def test_json_by_any_of_its_spellings(http: httpx.AsyncClient, said: str) -> None:
    content = json.dumps(CHAT).encode()
    response = await http.post(PATH, content=content, headers={"content-type": said})
    assert response.status_code == 200


async def test_a_compressed_body(http: httpx.AsyncClient) -> None:
    content = gzip.compress(json.dumps(CHAT).encode())
    response = await http.post(PATH, content=content, headers=JSON | {"content-encoding": "gzip"})
    error = error_of(response, 415)
    assert error["param"] == "Content-Encoding"
    assert error["message"] == 'Content-Encoding is "gzip"; bodies must not be compressed'
    plain = JSON | {"content-encoding": "identity"}
    assert (await http.post(PATH, json=CHAT, headers=plain)).status_code == 200


async def test_options_and_head(http: httpx.AsyncClient) -> None:
    options = await http.options(PATH)
    assert (options.status_code, options.headers["allow"]) == (204, "POST, OPTIONS")
    head = await http.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len((await http.get("/v1/models")).content)
    assert (await http.options("/nothing")).status_code == 404


async def test_errors_below_messages_speak_anthropics_dialect(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/messages/nothing", headers={"x-request-id": "abc"})
    assert response.status_code == 404
    assert response.json() == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": 'there is no "/v1/messages/nothing" here; see /docs',
        },
        "request_id": "abc",
    }
