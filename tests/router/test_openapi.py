"""The OpenAPI document and its page say what the server does."""

import asyncio
import re
import threading
from html.parser import HTMLParser
from typing import Any

import httpx
import jsonschema
import pytest

from router import documents, openapi
from router.routes import ENDPOINTS
from tests.router.conftest import StartRouter
from tests.router.fake_scheduler import FakeScheduler


@pytest.fixture
async def told(http: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await http.get("/openapi.json")).json()
    return document


def refs(value: Any) -> set[str]:
    """Every reference in a document."""
    if isinstance(value, list):
        return set().union(*map(refs, value))
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(refs, value.values()))
    return set()


async def test_every_endpoint_is_in_it(told: dict[str, Any]) -> None:
    said = {(method, path) for path, methods in told["paths"].items() for method in methods}
    served = {(e.method.lower(), e.path.replace(":model}", "}")) for e in ENDPOINTS}
    assert said == served
    names = [o["operationId"] for methods in told["paths"].values() for o in methods.values()]
    assert len(set(names)) == len(names)


async def test_its_references_lead_somewhere(told: dict[str, Any]) -> None:
    schemas = told["components"]["schemas"]
    assert refs(told) <= {f"#/components/schemas/{name}" for name in schemas}
    assert "#/components/schemas/ChatCompletionRequest" in refs(told)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_every_field_has_a_type_and_a_meaning(told: dict[str, Any]) -> None:
    """And nothing is called as in our code."""
    for name, schema in told["components"]["schemas"].items():
        assert re.fullmatch("[A-Z][A-Za-z]+", name)
        assert not name.endswith("Body")
        assert schema["description"]
        for field, said in schema.get("properties", {}).items():
            assert said["description"].endswith((".", "?")), (name, field)
            assert {"type", "anyOf", "$ref", "const", "enum"} & said.keys(), (name, field)
            assert "\n" not in said["description"]


async def test_what_is_sent_and_refused_is_valid_by_it(
    http: httpx.AsyncClient, told: dict[str, Any]
) -> None:
    def validate(value: Any, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": told["components"]}
        jsonschema.validate(value, schema, jsonschema.Draft202012Validator)

    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stop": ["x"]}
    validate(body, "ChatCompletionRequest")
    refused = body | {"temperature": "warm"}
    with pytest.raises(jsonschema.ValidationError):
        validate(refused, "ChatCompletionRequest")
    response = await http.post("/v1/chat/completions", json=refused)
    statuses = told["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert str(response.status_code) in statuses
    validate(response.json(), "Error")
    response = await http.get("/v1/responses/x")
    statuses = told["paths"]["/v1/responses/{response_id}"]["get"]["responses"]
    assert statuses[str(response.status_code)]["description"] == "response not found"
    unknown = await http.get("/v1/messages/x")
    validate(unknown.json(), "AnthropicError")


async def test_it_asks_for_a_key_where_the_server_does(
    told: dict[str, Any], start_router: StartRouter
) -> None:
    assert "security" not in told
    async with (
        start_router(api_key="secret") as router,
        httpx.AsyncClient(base_url=router.address, headers={"x-api-key": "secret"}) as http,
    ):
        guarded = (await http.get("/openapi.json")).json()
    assert guarded["security"] == [{"bearer": []}, {"x-api-key": []}]
    for path, methods in guarded["paths"].items():
        for operation in methods.values():
            is_open = path in ("/health", "/ready")
            assert ("401" in operation["responses"]) is (path != "/health")
            assert (operation.get("security") == []) is is_open
            assert ({"basic": []} in operation.get("security", [])) is (
                path in ("/docs", "/openapi.json")
            )


class _Page(HTMLParser):
    """What a page shows and what it would load or run."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.ids.add(said.get("id", ""))
        if tag == "a":
            self.links.append(said["href"])
        if tag in ("script", "link", "img", "iframe") or "src" in said:
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_shows_it_alone(http: httpx.AsyncClient, told: dict[str, Any]) -> None:
    response = await http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = _Page(response.text)
    assert page.loads == []
    assert "url(" not in response.text
    for path, methods in told["paths"].items():
        assert path in page.text
        assert all(operation["summary"] in page.text for operation in methods.values())
    for link in page.links:
        assert link == "/openapi.json" or link.removeprefix("#") in page.ids
    for schema in told["components"]["schemas"].values():
        for field, said in schema.get("properties", {}).items():
            assert field in page.text
            assert said.get("description", "").replace("`", "") in page.text


async def test_it_is_made_once_for_what_it_tells(
    start_router: StartRouter, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never on the event loop, where all streams would wait for it."""
    made_in: list[str] = []

    def document(*args: Any, **more: Any) -> dict[str, Any]:
        made_in.append(threading.current_thread().name)
        return openapi.document(*args, **more)

    monkeypatch.setattr(documents, "document", document)
    async with (
        start_router() as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        gets = [http.get(path) for path in ("/docs", "/openapi.json") * 3]
        assert {answer.status_code for answer in await asyncio.gather(*gets)} == {200}
        assert len(made_in) == 1
        assert made_in[0] != threading.main_thread().name
        monkeypatch.setattr(type(router.backend.engine.cell), "max_model_len", 77)
        fields = (await http.get("/openapi.json")).json()["components"]["schemas"]
        kept = fields["CompletionRequest"]["properties"]["truncate_prompt_tokens"]
        assert kept["maximum"] == 77
    assert len(made_in) == 2
