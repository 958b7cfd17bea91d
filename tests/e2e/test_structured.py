"""Answers of the real model, drawn at temperature 1, are what they were asked to be."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.e2e.languages import HARD, Language, languages
from tests.e2e.server import Server, serve

MAX_TOKENS = 300
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A small token budget, so that prompts come in chunks, and few blocks, so that some wait."""
    flags = ("--max-model-len", "512", "--num-blocks", "96", "--max-num-batched-tokens", "24")
    with serve(model_dir, tmp_path_factory.mktemp("run"), *flags) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        yield client


def ask(server: Server, asked: Sequence[Language]) -> list[dict[str, Any]]:
    """The choices of one request for each language, all at once."""

    async def one(client: httpx.AsyncClient, number: int, language: Language) -> dict[str, Any]:
        body = {
            "messages": [{"role": "user", "content": f"Say something, number {number}."}],
            "temperature": 1,
            "seed": number,
            "max_tokens": MAX_TOKENS,
            **language.fields,
        }
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, (response.text, language)
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice

    async def all_of_them() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            return await asyncio.gather(
                *(one(client, number, language) for number, language in enumerate(asked))
            )

    return asyncio.run(all_of_them())


def check(server: Server, asked: Sequence[Language]) -> None:
    choices = ask(server, asked)
    ended = 0
    for choice, language in zip(choices, asked, strict=True):
        assert choice["finish_reason"] in ("stop", "length")
        if choice["finish_reason"] == "stop":
            language.check(choice["message"]["content"])
            ended += 1
    assert ended >= 0.8 * len(asked)


def test_hard_languages(server: Server) -> None:
    check(server, list(HARD.values()))


@seed(1)
@settings(
    max_examples=1,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(asked=st.lists(languages, min_size=20, max_size=20))
def test_random_languages(server: Server, asked: list[Language]) -> None:
    check(server, asked)


@pytest.mark.slow
@seed(2)
@settings(
    max_examples=5,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(asked=st.lists(languages, min_size=40, max_size=40))
def test_two_hundred_random_languages(server: Server, asked: list[Language]) -> None:
    check(server, asked)


def test_streams_samples_and_logprobs_line_up(client: openai.OpenAI) -> None:
    schema = Language.of_schema(PERSON)
    said: Any = {
        "model": "",
        "messages": [{"role": "user", "content": "Describe a person as JSON."}],
        "n": 3,
        "seed": 11,
        "temperature": 1,
        "max_tokens": 200,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": schema.fields,
    }
    whole = client.chat.completions.create(**said)
    texts = [""] * 3
    reasons = [""] * 3
    for chunk in client.chat.completions.create(**said, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) > 1
    assert "stop" in reasons
    for choice in whole.choices:
        if choice.finish_reason == "stop":
            schema.check(choice.message.content or "")
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        spelled = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
        assert spelled.decode().startswith(choice.message.content or "?")


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_worker_does_not_lose_the_place_in_the_grammar(
    server: Server, client: openai.OpenAI
) -> None:
    schema = Language.of_schema({"type": "array", "items": PERSON, "minItems": 3, "maxItems": 4})
    said: Any = {
        "model": "",
        "prompt": "People:",
        "seed": 4,
        "temperature": 1,
        "max_tokens": 400,
        "extra_body": schema.fields,
    }
    want = client.completions.create(**said).choices[0]
    assert want.finish_reason == "stop"
    schema.check(want.text)
    worker = server.processes()["worker"]
    text, killed = "", False
    with client.completions.create(**said, stream=True) as stream:
        for chunk in stream:
            text += chunk.choices[0].text
            if not killed and len(text) > 20:
                os.kill(worker, signal.SIGKILL)
                killed = True
    assert killed
    assert text == want.text


def test_the_parse_helper_of_the_openai_package(client: openai.OpenAI) -> None:
    from pydantic import BaseModel, Field

    class Pet(BaseModel):
        kind: str = Field(max_length=10)
        legs: int = Field(ge=0, le=8)

    parsed = client.chat.completions.parse(
        model="",
        messages=[{"role": "user", "content": "A pet, please."}],
        response_format=Pet,
        seed=3,
        max_tokens=200,
    )
    pet = parsed.choices[0].message.parsed
    assert pet is not None
    assert 0 <= pet.legs <= 8


def test_a_choice_a_grammar_and_json_mode(server: Server) -> None:
    def one(**fields: Any) -> str:
        body = {"prompt": "Well,", "temperature": 1, "seed": 5, "max_tokens": 200, **fields}
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        text: str = choice["text"]
        return text

    assert one(guided_choice=["yes indeed", "no 🙂"]) in ("yes indeed", "no 🙂")
    assert set(one(guided_grammar='start: "(" start ")" | "x"')) <= set("(x)")
    assert isinstance(json.loads(one(response_format={"type": "json_object"})), dict)


def test_a_stop_string_ends_an_answer_only_where_it_is_complete(server: Server) -> None:
    def one(**fields: Any) -> dict[str, Any]:
        body = {"prompt": "A person:", "temperature": 1, "seed": 7, "max_tokens": 200, **fields}
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice

    schema = Language.of_schema(PERSON)
    choice = one(stop=[",", '"', "}"], **schema.fields)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    schema.check(choice["text"])
    choice = one(stop=["\n"], **Language.of_regex("([a-z]{1,9} [a-z]{1,9}\n){1,9}").fields)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    lines = Language.of_regex("[a-z]{1,9}(\n[a-z]{1,9}){5}|[a-z]{1,9}")
    choice = one(stop=["\n"], logit_bias={"2": -100}, **lines.fields)  # the end comes last
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "\n")
    assert choice["text"].isalpha()


def test_allowed_tokens_and_bad_words(server: Server) -> None:
    def tokens(**fields: Any) -> list[int]:
        body = {"prompt": "One two three", "max_tokens": 12, "ignore_eos": True, **fields}
        body["return_token_ids"] = True
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
        assert response.status_code == 200, response.text
        ids: list[int] = response.json()["choices"][0]["token_ids"]
        return ids

    free = tokens(temperature=0)
    allowed = [token for token in range(500, 600) if token not in free]
    assert set(tokens(temperature=1, allowed_token_ids=allowed)) <= set(allowed)
    said = httpx.post(
        f"{server.url}/v1/completions",
        json={"prompt": "One two three", "max_tokens": 12, "temperature": 0, "ignore_eos": True},
        timeout=300,
    ).json()["choices"][0]["text"]
    word = next(word for word in said.split() if word.isalpha())
    changed = tokens(temperature=0, bad_words=[word])
    assert changed != free


def test_a_grammar_that_fails_ends_its_request_alone(server: Server) -> None:
    # Passes at the router, where a vocabulary is 256 bytes; tokens of many letters exhaust it.
    costly = Language.of_regex(r"(\p{L}{1,100}){1,100}")
    with httpx.Client(base_url=server.url, timeout=300) as client:
        body = {"prompt": "abc", "max_tokens": 60, "temperature": 1, "seed": 1, **costly.fields}
        assert client.post("/v1/completions", json=body).status_code in (200, 500)
        sound = {"prompt": "abc", "max_tokens": 5, "temperature": 0}
        assert client.post("/v1/completions", json=sound).status_code == 200
    assert server.processes()
