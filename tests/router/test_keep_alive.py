"""Streams on which nothing moves: a proxy must not take them for dead."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from router import answers
from router.server import Router
from tests.router.fake_scheduler import FakeScheduler

XYZ: dict[str, Any] = {"prompt": "xyz", "max_tokens": 30}
PATH = "/v1/completions"


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "KEEP_ALIVE_S", 0.01)


@pytest.mark.parametrize("hold_at", [0, 3])
async def test_a_stream_on_which_nothing_moves_is_kept_alive(
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    hold_at: int,
) -> None:
    scheduler.hold_at = hold_at
    async with http.stream("POST", PATH, json={**XYZ, "stream": True}) as response:
        assert response.status_code == 200
        comments, text = 0, ""
        async for line in response.aiter_lines():
            if line.startswith(":"):
                comments += len(text) == hold_at
                if comments == 3:
                    break
            elif line:
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    scheduler.hold_at = None


async def test_the_official_client_does_not_see_what_keeps_a_stream_alive(
    client: openai.AsyncOpenAI, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 2
    stream = await client.completions.create(model="tiny", stream=True, **XYZ)
    text = ""
    async with asyncio.timeout(20):
        async for chunk in stream:
            text += chunk.choices[0].text
            if len(text) == 2:
                asyncio.get_running_loop().call_later(0.05, setattr, scheduler, "hold_at", None)
    assert text == "xyz" * 10


async def test_an_error_after_a_comment_is_an_event(
    http: httpx.AsyncClient,
    router: Router,
    scheduler: FakeScheduler,
) -> None:
    scheduler.hold_at = 0
    async with http.stream("POST", PATH, json={**XYZ, "stream": True}) as response:
        assert response.status_code == 200
        router.backend.engine.end_all("enough")
        *_, last, _ = [line async for line in response.aiter_lines()]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "enough"
