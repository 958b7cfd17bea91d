"""Which seeds requests get that bring none."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.tokenizer import Tokenizer
from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler


@asynccontextmanager
async def client_of(router: Router) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{router.address}/v1/", timeout=20) as client:
        yield client


async def complete(client: httpx.AsyncClient, prompt: Any, **fields: Any) -> None:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, **fields}
    (await client.post("completions", json=body)).raise_for_status()


async def chat(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    (await client.post("chat/completions", json=body)).raise_for_status()


async def test_a_seeded_router_gives_the_same_seeds_in_the_same_order(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    async def seeds(number: int | None) -> list[int]:
        scheduler.submits.clear()
        async with start_router(seed=number) as router, client_of(router) as client:
            await complete(client, "xyz")
            await complete(client, ["y", "z"])
            await complete(client, "x", seed=7)
            await chat(client)
        return [submit.seed for submit in scheduler.submits]

    first = await seeds(1)
    assert await seeds(1) == first
    drawn = first + await seeds(2) + await seeds(None) + await seeds(None)
    assert drawn[3::5] == [7] * 4
    del drawn[3::5]
    assert len(set(drawn)) == len(drawn) == 4 * 4


async def test_seeds_follow_the_order_of_arrival_and_not_of_tokenizing(
    start_router: StartRouter, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    encode = Tokenizer.encode

    def held_up(self: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        if text == "slow":
            assert may_go_on.wait(20)
        return encode(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", held_up)

    async def seeds() -> dict[int, int]:
        scheduler.submits.clear()
        async with start_router(seed=1) as router, client_of(router) as client:
            slow = asyncio.create_task(complete(client, "slow"))
            if may_go_on.is_set():
                await slow
            else:
                await until(lambda: router.backend.permits.num_taken == 1)
            await complete(client, "quick!")
            may_go_on.set()
            await slow
        return {submit.num_prompt_tokens: submit.seed for submit in scheduler.submits}

    overtaken = await seeds()
    assert list(overtaken) == [3, 4]
    assert await seeds() == overtaken
