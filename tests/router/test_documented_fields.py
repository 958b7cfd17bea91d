"""Every endpoint takes the fields that its document lists, within the limits that it says, and no
others; every answer is what the document says."""

import json
from typing import Any

import httpx
import jsonschema
import pytest

from gateway.limits import RequestLimits
from tests.openai_spec import events
from tests.router.conftest import StartRouter
from tests.router.fake_scheduler import FakeScheduler

HELLO = [{"role": "user", "content": "hello"}]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    # the name of a body's schema: its path, and what must be there
    "ChatCompletionRequest": ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 4}),
    "CompletionRequest": ("/v1/completions", {"prompt": "xyz", "max_tokens": 4}),
    "EmbeddingRequest": ("/v1/embeddings", {"input": "xyz"}),
    "ResponseRequest": ("/v1/responses", {"input": "xyz", "max_output_tokens": 4}),
    "MessageRequest": ("/v1/messages", {"messages": HELLO, "max_tokens": 4}),
    "CountTokensRequest": ("/v1/messages/count_tokens", {"messages": HELLO}),
    "TokenizeRequest": ("/tokenize", {"prompt": "xyz"}),
    "TokenizeChatRequest": ("/tokenize", {"messages": HELLO}),
    "DetokenizeRequest": ("/detokenize", {"tokens": [5]}),
}
NEEDED: dict[str, dict[str, Any]] = {
    # a field: what it cannot be without
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "length_penalty": {"use_beam_search": True, "max_tokens": 4},
    "early_stopping": {"use_beam_search": True, "max_tokens": 4},
    "min_tokens": {"max_tokens": 9},
    "max_tokens": {"echo": True},
    "ResponseRequest.top_logprobs": {"include": ["message.output_text.logprobs"]},
}
VALUES: dict[str, list[Any]] = {
    # values of what a type alone does not tell
    "model": ["tiny"],
    "messages": [HELLO],
    "content": ["hi"],
    "tool_choice": ["none", "auto"],
    "chat_template_kwargs": [{"enable_thinking": False}],
    "guided_regex": ["a+"],
    "guided_grammar": ['start: "a"'],
    "guided_json": [{"type": "object"}, '{"type": "object"}'],
    "structured_outputs": [{"regex": "a"}],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    ],
    "text": [{"format": {"type": "text"}}, {"verbosity": "medium"}],
    "output_config": [{"format": {"type": "json_schema", "schema": {"type": "object"}}}],
    "tools": [[]],
    "logit_bias": [{"5": 1.5}],
    "prompt": ["x", ["x", "y"], [5, 6], [[5], [6, 7]]],
    "input": ["x"],
    "system": ["be kind"],
    "thinking": [{"type": "disabled"}],
    "continue_final_message": [False],
    "early_stopping": [True, False, "never"],
    "user": ["me"],
    "metadata": [{"a": "b"}],
    "cache_salt": ["tenant-1"],
    "request_id": ["mine"],
    "truncate_prompt_tokens": [-1, 3],
    "previous_response_id": [],
    "MessageRequest.tool_choice": [{"type": "none"}, {"type": "auto"}],
    "CountTokensRequest.tool_choice": [{"type": "none"}],
    "MessageRequest.metadata": [{"user_id": "me"}],
    "TokenizeRequest.prompt": ["x"],
    "EmbeddingRequest.input": ["x", ["x", "y"], [5, 6], [[5], [6, 7]]],
}
DIM = 4
NAMED = {"x-request-id": "one"}
NUMBERS = ("integer", "number")
Told = dict[str, Any]


@pytest.fixture(autouse=True)
def embeds(request: pytest.FixtureRequest, scheduler: FakeScheduler) -> None:
    """What is embedded is embedded by another model. Set before a router is started."""
    asked = getattr(request.node, "callspec", None)
    if asked and "EmbeddingRequest" in asked.params.values():
        scheduler.embedding_dim = DIM


@pytest.fixture
async def told(http: httpx.AsyncClient) -> Told:
    document: Told = (await http.get("/openapi.json")).json()
    return document


def fields_of(told: Told, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = told["components"]["schemas"][name]["properties"]
    return fields


def needed(told: Told, name: str, field: str) -> dict[str, Any]:
    known = NEEDED.get(f"{name}.{field}", NEEDED.get(field, {}))
    return {key: value for key, value in known.items() if key in fields_of(told, name)}


def examples(field: str, said: dict[str, Any], body: str = "") -> list[Any]:
    """Values that the schema of a field allows, the edges of its range among them."""
    for name in (f"{body}.{field}", field):
        if name in VALUES:
            return VALUES[name]
    if "const" in said:
        return [said["const"]]
    if "enum" in said:
        return list(said["enum"])
    if "anyOf" in said:
        return [value for kind in said["anyOf"] for value in examples("", kind)]
    match said.get("type"):
        case "boolean":
            return [True, False]
        case "integer" | "number":
            edges = [said[key] for key in ("minimum", "maximum") if key in said]
            return [edge for edge in edges if abs(edge) < 1 << 62] or [1]
        case "string":
            return ["x", "x" * said.get("maxLength", 2)]
        case "array":
            value, *_ = examples("", said["items"])
            return [[value], [value] * said.get("maxItems", 2)]
        case "object":
            return [{}]
    return []


async def refusal(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    """Why a body is refused; empty if it is not."""
    response = await http.post(path, json=body)
    if response.status_code == 200:
        return ""
    assert response.status_code in (400, 404), response.text
    message: str = response.json()["error"]["message"]
    return message


@pytest.mark.parametrize("name", BODIES)
async def test_every_documented_field_is_taken(
    http: httpx.AsyncClient, told: Told, name: str
) -> None:
    path, least = BODIES[name]
    for field, said in fields_of(told, name).items():
        for value in examples(field, said, name):
            body = least | needed(told, name, field)
            why = await refusal(http, path, body | {field: value})
            assert not why or _is_about_more_than_the_field(why), (field, value, why)


def _is_about_more_than_the_field(why: str) -> bool:
    """A value that is right by itself may not fit this model or the rest of the body."""
    return (
        any(
            words in why
            for words in (
                "this model accepts at most",
                "there are 128 beams",
                "must be at most max_tokens",
                "there must be one of them",
                "has no end token",
                "is not supported",
                "does not know",
                "was not trained for fewer",
                "cannot be told how much to think",
                "does not think",
            )
        )
        and "is not a field" not in why
    )


@pytest.mark.parametrize("name", BODIES)
async def test_a_documented_default_changes_nothing(
    http: httpx.AsyncClient, scheduler: FakeScheduler, told: Told, name: str
) -> None:
    """What is submitted is the same with and without it."""
    path, least = BODIES[name]
    if "seed" in fields_of(told, name):
        least = least | {"seed": 7}
    scheduler.submits.clear()
    for field, said in fields_of(told, name).items():
        if "default" not in said or field in least:
            continue
        plain = await http.post(path, json=least, headers=NAMED)
        given = await http.post(path, json=least | {field: said["default"]}, headers=NAMED)
        assert (plain.status_code, given.status_code) == (200, 200), given.text
        assert plain.headers["content-type"] == given.headers["content-type"], field
        if scheduler.submits:
            first, second = scheduler.submits[-2:]
            for submit in (first, second):
                submit.ClearField("sequence_id")
                if "seed" not in least:
                    submit.ClearField("seed")
            assert first == second, field


@pytest.mark.parametrize("name", BODIES)
async def test_what_is_beyond_a_documented_limit_is_refused_by_name(
    http: httpx.AsyncClient, told: Told, name: str
) -> None:
    path, least = BODIES[name]
    num_checked = 0
    for field, said in fields_of(told, name).items():
        for value in beyond(said):
            body = least | needed(told, name, field)
            response = await http.post(path, json=body | {field: value})
            assert response.status_code == 400, (field, str(value)[:80], response.text)
            assert field in response.json()["error"]["message"], response.text
            num_checked += 1
    assert num_checked >= 1


def beyond(said: dict[str, Any]) -> list[Any]:
    """Values just beyond what the schema of a field allows, and of other types."""
    wrong: list[Any] = []
    for kind in said.get("anyOf", [said]):
        if "minimum" in kind and kind["minimum"] > -(1 << 62):
            wrong.append(kind["minimum"] - 1)
        if "maximum" in kind and kind["maximum"] < 1 << 62:
            wrong.append(kind["maximum"] + 1)
        if "exclusiveMinimum" in kind:
            wrong.append(kind["exclusiveMinimum"])
        if "maxItems" in kind and kind["maxItems"] < 5000:
            wrong.append([_some(kind["items"])] * (kind["maxItems"] + 1))
        if "maxLength" in kind:
            wrong += ["x" * (kind["maxLength"] + 1), ""]
        if "maxProperties" in kind:
            wrong.append({str(key): 0 for key in range(kind["maxProperties"] + 1)})
        if "maximum" in kind.get("items", ()):
            wrong += [[kind["items"]["maximum"] + 1], [kind["items"]["minimum"] - 1]]
        if "pattern" in kind:
            wrong += ["a b", "x" * 200]
        if "const" in kind and "anyOf" not in said:
            wrong += ["something else", 7]
        if "enum" in kind and "anyOf" not in said:
            wrong.append("something else")
        if kind.get("type") == "boolean" and "anyOf" not in said:
            wrong += ["true", 3]
        if kind.get("type") in NUMBERS:
            wrong += ["1", [1]]
    return wrong


def _some(schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return {"name": "f"}
    if schema.get("required") == ["type", "function"]:
        return FUNCTION
    if schema.get("required") == ["type", "name"]:
        return {"type": "function", "name": "f"}
    return examples("", schema)[0]


UNKNOWN = ("temprature", "maxTokens", "best-of", "x" * 500, "ünknown", "a\nb")


@pytest.mark.parametrize("name", BODIES)
async def test_what_is_not_documented_is_refused_by_name(
    http: httpx.AsyncClient, told: Told, name: str
) -> None:
    """Misspelt fields, and those of all the other endpoints."""
    path, least = BODIES[name]
    own = set(fields_of(told, name))
    if path == "/tokenize":
        own |= {"prompt", "messages"}  # which of the two it is
    others = {field for other in BODIES for field in fields_of(told, other)} - own
    for field in (*UNKNOWN, *sorted(others)):
        response = await http.post(path, json=least | {field: 12.5})
        assert response.status_code == 400, (field, response.text)
        error = response.json()["error"]
        assert json.dumps(field, ensure_ascii=False)[1:-1][:40] in error["message"]
        assert len(response.content) < 1000
        if "param" in error:
            assert error["code"] in ("unknown_parameter", "unsupported_parameter")
    null = await http.post(path, json=least | dict.fromkeys(UNKNOWN))
    assert null.status_code == 200, null.text


@pytest.mark.parametrize(
    ("field", "near"),
    [("temprature", "temperature"), ("max_token", "max_tokens"), ("topp", "top_p")],
)
async def test_a_misspelt_field_is_named_with_the_one_that_may_be_meant(
    http: httpx.AsyncClient, field: str, near: str
) -> None:
    response = await http.post("/v1/completions", json={"prompt": "x", field: 1})
    assert response.json()["error"] == {
        "message": f"{field} is not a field of this endpoint; did you mean {near}?",
        "type": "invalid_request_error",
        "param": field,
        "code": "unknown_parameter",
    }


async def test_limits_and_defaults_are_the_operators_and_the_models(
    start_router: StartRouter,
) -> None:
    async with (
        start_router(limits=RequestLimits(n=3, stop=2, logprobs=1)) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        fields = fields_of((await http.get("/openapi.json")).json(), "CompletionRequest")
        assert fields["n"]["maximum"] == fields["best_of"]["maximum"] == 3
        assert fields["logprobs"]["maximum"] == 1
        assert fields["stop"]["anyOf"][1]["maxItems"] == 2
        defaults = router.backend.model.defaults
        assert fields["temperature"]["default"] == defaults.temperature
        assert fields["top_k"]["default"] == defaults.top_k


ANSWERED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO, "n": 2}),
    (
        "/v1/chat/completions",
        {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "return_token_ids": True},
    ),
    ("/v1/chat/completions", {"messages": HELLO, "prompt_logprobs": 1}),
    ("/v1/completions", {"prompt": ["xyz", "zyx"], "stop": "z", "max_tokens": 9}),
    ("/v1/completions", {"prompt": "xyz", "logprobs": 1, "echo": True, "return_token_ids": True}),
    ("/v1/completions", {"prompt": "xyz", "prompt_logprobs": 0}),
    ("/v1/responses", {"input": "xyz"}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
    ("/v1/messages/count_tokens", {"messages": HELLO}),
    ("/tokenize", {"prompt": "xyz", "return_token_strs": True}),
    ("/tokenize", {"messages": HELLO}),
    ("/detokenize", {"tokens": [5]}),
]
STREAMED = [
    (path, body) for path, body in ANSWERED if path.startswith("/v1/") and "count" not in path
]
USAGES: list[dict[str, Any]] = [
    {},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
]


def validate(told: Told, path: str, method: str, media_type: str, value: Any) -> None:
    """Raises ValidationError unless `value` is what the document says that it is."""
    content = told["paths"][path][method]["responses"]["200"]["content"]
    schema = content[media_type]["schema"] | {"components": told["components"]}
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(("path", "body"), ANSWERED, ids=str)
async def test_answers_are_as_documented(
    http: httpx.AsyncClient, told: Told, path: str, body: dict[str, Any]
) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    validate(told, path, "post", "application/json", response.json())


@pytest.mark.parametrize(("path", "body"), STREAMED, ids=str)
@pytest.mark.parametrize("usage", USAGES, ids=["", "usage", "all usage"])
async def test_events_are_as_documented(
    http: httpx.AsyncClient, told: Told, path: str, body: dict[str, Any], usage: dict[str, Any]
) -> None:
    if "prompt_logprobs" in body or (usage and "completions" not in path):
        pytest.skip("no such stream")
    response = await http.post(path, json=body | {"stream": True} | usage)
    assert response.status_code == 200, response.text
    told_events = [event for _, event in events(response.text) if event != "[DONE]"]
    assert len(told_events) > 1
    for event in told_events:
        validate(told, path, "post", "text/event-stream", event)


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready", "/load", "/version"])
async def test_what_is_got_is_as_documented(http: httpx.AsyncClient, told: Told, path: str) -> None:
    validate(told, path, "get", "application/json", (await http.get(path)).json())


async def test_vectors_are_as_documented(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.embedding_dim = DIM
    async with start_router() as router, httpx.AsyncClient(base_url=router.address) as http:
        told = (await http.get("/openapi.json")).json()
        for encoding in ("float", "base64"):
            body = {"input": ["x", "y"], "encoding_format": encoding}
            answer = (await http.post("/v1/embeddings", json=body)).json()
            validate(told, "/v1/embeddings", "post", "application/json", answer)


async def test_parameters_of_addresses_are_taken_and_no_others(
    http: httpx.AsyncClient, told: Told
) -> None:
    stored = (await http.post("/v1/responses", json={"input": "xyz"})).json()
    num_checked = 0
    for path, methods in told["paths"].items():
        queries = [p for p in methods.get("get", {}).get("parameters", ()) if p["in"] == "query"]
        if not queries:
            continue
        address = path.replace("{response_id}", stored["id"])
        unknown = await http.get(address, params={"unknown": 1})
        assert unknown.status_code == 400
        assert "unknown is not a parameter" in unknown.json()["error"]["message"]
        for query in queries:
            schema, name = query["schema"], query["name"]
            for value in examples("", schema):
                response = await http.get(address, params={name: json.dumps(value).strip('"')})
                message = (response.json().get("error") or {}).get("message", "")
                assert "is not a parameter" not in message
                num_checked += 1
            for value in (schema.get("maximum", 1) + 1, schema.get("minimum", 0) - 1):
                if "minimum" in schema and not schema["minimum"] <= value <= schema.get(
                    "maximum", 9
                ):
                    response = await http.get(address, params={name: value})
                    assert response.json()["error"]["param"] == name
        if "default" in queries[0]["schema"]:
            given = {
                q["name"]: json.dumps(q["schema"]["default"]).strip('"')
                for q in queries
                if "default" in q["schema"]
            }
            plain = await http.get(address)
            assert (await http.get(address, params=given)).json() == plain.json()
        validate(told, path, "get", "application/json", (await http.get(address)).json())
    assert num_checked >= 6


async def test_a_model_and_a_stored_response_are_as_documented(
    http: httpx.AsyncClient, told: Told
) -> None:
    model = (await http.get("/v1/models/tiny")).json()
    validate(told, "/v1/models/{name}", "get", "application/json", model)
    stored = (await http.post("/v1/responses", json={"input": "xyz"})).json()
    path = "/v1/responses/{response_id}"
    again = (await http.get(f"/v1/responses/{stored['id']}")).json()
    validate(told, path, "get", "application/json", again)
    deleted = (await http.delete(f"/v1/responses/{stored['id']}")).json()
    validate(told, path, "delete", "application/json", deleted)
