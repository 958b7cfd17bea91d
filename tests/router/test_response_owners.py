"""Responses answer the key that asked for them; to every other it is as if they were not there."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import httpx
import pytest

from router.server import Router
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

PATH = "/v1/responses"
ASKED: dict[str, Any] = {"model": "tiny", "input": "hello"}


class Clients(NamedTuple):
    """Two of one router, each with a key of its own."""

    alice: httpx.AsyncClient
    bob: httpx.AsyncClient
    router: Router


@pytest.fixture
async def clients(start_router: StartRouter) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(
            start_router(keys={"alice": "sk-a", "bob": "sk-b"})
        )
        alice, bob = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=router.address, headers={"x-api-key": key}, timeout=20)
            )
            for key in ("sk-a", "sk-b")
        ]
        yield Clients(alice, bob, router)


async def answers(http: httpx.AsyncClient, response_id: str) -> dict[str, tuple[int, Any]]:
    """To every way of coming back to a response but its deletion: the status, and the error."""
    path = f"{PATH}/{response_id}"
    had = {
        "get": await http.get(path),
        "events": await http.get(path, params={"stream": "true"}),
        "items": await http.get(f"{path}/input_items"),
        "cancel": await http.post(f"{path}/cancel"),
        "go on": await http.post(PATH, json=ASKED | {"previous_response_id": response_id}),
    }
    return {
        name: (answer.status_code, answer.json().get("error") if answer.is_error else None)
        for name, answer in had.items()
    }


def told_of(said: dict[str, tuple[int, Any]], response_id: str) -> str:
    """What was said of it, without its id, which whoever asked has said."""
    return repr(said).replace(response_id, "ID")


async def test_what_is_kept_is_its_owners(clients: Clients) -> None:
    asked = ASKED | {"background": True, "stream": True}
    made = await clients.alice.post(PATH, json=asked)
    assert made.status_code == 200
    [kept] = clients.router.backend.responses._entries
    nothing = "resp_" + "0" * 32
    strange = await answers(clients.bob, kept)
    assert {status for status, _ in strange.values()} == {404}
    assert told_of(strange, kept) == told_of(await answers(clients.bob, nothing), nothing)
    assert (await clients.bob.delete(f"{PATH}/{kept}")).status_code == 404
    own = await answers(clients.alice, kept)
    assert {status for status, _ in own.values()} == {200}
    assert (await clients.alice.delete(f"{PATH}/{kept}")).status_code == 200


async def test_what_is_not_in_the_background_is_its_owners(clients: Clients) -> None:
    kept = (await clients.alice.post(PATH, json=ASKED)).json()["id"]
    assert (await clients.bob.get(f"{PATH}/{kept}")).status_code == 404
    assert (await clients.alice.get(f"{PATH}/{kept}")).status_code == 200


async def test_what_runs_is_its_owners(clients: Clients, scheduler: FakeScheduler) -> None:
    scheduler.hold_at = 2
    made = await clients.alice.post(PATH, json=ASKED | {"background": True})
    running = made.json()["id"]
    nothing = "resp_" + "0" * 32
    strange = await answers(clients.bob, running)
    assert told_of(strange, running) == told_of(await answers(clients.bob, nothing), nothing)
    assert (await clients.bob.delete(f"{PATH}/{running}")).status_code == 404
    assert clients.router.backend.permits.num_taken == 1  # nobody has ended it
    seen = (await clients.alice.get(f"{PATH}/{running}")).json()
    assert seen["status"] in ("queued", "in_progress")
    ended = (await clients.alice.post(f"{PATH}/{running}/cancel")).json()
    assert ended["status"] == "cancelled"
    await until(lambda: clients.router.backend.permits.num_taken == 0)
