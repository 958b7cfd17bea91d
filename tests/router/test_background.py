"""Responses in the background: polled, followed, cancelled, bounded; and what was their input."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from router.server import Router
from tests import openai_spec
from tests.openai_spec import check, events
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

PATH = "/v1/responses"
ASKED: dict[str, Any] = {"model": "tiny", "input": "hello 🙂", "background": True}
ANSWER = "user\nhello 🙂"
ENDS = ("completed", "incomplete", "failed", "cancelled")


async def ended(http: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    """The response, polled until it has ended."""
    async with asyncio.timeout(20):
        while True:
            body: dict[str, Any] = (await http.get(f"{PATH}/{response_id}")).json()
            if body["status"] in ENDS:
                return body
            await asyncio.sleep(0.005)


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@openai_spec.needs_spec
async def test_it_is_polled_until_it_is_complete(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 0
    queued = (await http.post(PATH, json=ASKED)).json()
    assert (queued["status"], queued["output"], queued["background"]) == ("queued", [], True)
    check(queued, "Response")
    assert router.backend.permits.num_taken == 1
    scheduler.hold_at = None
    whole = await ended(http, queued["id"])
    check(whole, "Response")
    assert whole["status"] == "completed"
    assert whole["output"][0]["content"][0]["text"] == ANSWER
    assert router.backend.permits.num_taken == 0
    said = ASKED | {"background": False}
    plain = (await http.post(PATH, json=said)).json()
    assert whole["usage"] == plain["usage"]


@openai_spec.needs_spec
async def test_its_stream_can_be_followed_from_anywhere(
    http: httpx.AsyncClient, scheduler: FakeScheduler
) -> None:
    """By whoever asked for it, by whoever comes while it runs, and when it has ended."""
    scheduler.hold_at = 4
    text = ""
    async with http.stream("POST", PATH, json=ASKED | {"stream": True}) as stream:
        async for part in stream.aiter_text():
            text += part
            if "output_text.delta" in text:
                break  # the client leaves, and it goes on
    told = list(events(text))
    first = told[0][1]["response"]
    assert [name for name, _ in told[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    so_far = (await http.get(f"{PATH}/{first['id']}")).json()
    check(so_far, "Response")
    assert (so_far["status"], len(so_far["output"])) == ("in_progress", 1)

    async def follow(after: int | None = None) -> list[Any]:
        query: dict[str, Any] = {"stream": "true"}
        if after is not None:
            query["starting_after"] = after
        response = await http.get(f"{PATH}/{first['id']}", params=query)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return [event for _, event in events(response.text)]

    following = [asyncio.create_task(follow()), asyncio.create_task(follow(2))]
    await asyncio.sleep(0.02)
    scheduler.hold_at = None
    whole, rest = await asyncio.gather(*following)
    for event in whole:
        check(event, "ResponseStreamEvent")
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert whole[: len(told)] == [event for _, event in told]
    assert rest == whole[3:]
    assert whole[-1]["type"] == "response.completed"
    deltas = [event["delta"] for event in whole if event["type"].endswith("text.delta")]
    assert "".join(deltas) == ANSWER
    stored = await ended(http, first["id"])
    assert stored == whole[-1]["response"]
    assert await follow() == whole
    assert await follow(len(whole) - 2) == whole[-1:]
    assert await follow(10**6) == []


async def test_by_the_official_client(client: openai.AsyncOpenAI, scheduler: FakeScheduler) -> None:
    scheduler.hold_at = 3
    stream = await client.responses.create(**ASKED, stream=True)
    first = await anext(aiter(stream))
    assert first.type == "response.created"
    await stream.close()
    cancelled = await client.responses.cancel(first.response.id)
    assert (cancelled.status, cancelled.id) == ("cancelled", first.response.id)
    scheduler.hold_at = None
    queued = await client.responses.create(**ASKED, stream=True)
    seen = [event async for event in queued]
    [created] = [event for event in seen if event.type == "response.created"]
    again = await client.responses.retrieve(
        created.response.id, stream=True, starting_after=seen[1].sequence_number
    )
    assert [event async for event in again] == seen[2:]
    listed = await client.responses.input_items.list(created.response.id)
    [item] = listed.data
    assert item.type == "message"
    assert getattr(item.content[0], "text", None) == "hello 🙂"


@openai_spec.needs_spec
@pytest.mark.parametrize("streams", [False, True])
async def test_cancelling_ends_it_at_once(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router, streams: bool
) -> None:
    scheduler.hold_at = 3
    body = ASKED | {"stream": streams}
    if streams:
        async with http.stream("POST", PATH, json=body) as stream:
            assert await anext(stream.aiter_lines()) == "event: response.created"
        [response_id] = router.backend.background._runs
    else:
        response_id = (await http.post(PATH, json=body)).json()["id"]
    await until(lambda: bool(scheduler.submits))
    cancelled = (await http.post(f"{PATH}/{response_id}/cancel")).json()
    check(cancelled, "Response")
    assert cancelled["status"] == "cancelled"
    await until(lambda: len(scheduler.aborted) == 1)
    await until(lambda: router.backend.permits.num_taken == 0)
    assert router.backend.engine._samples == {}
    assert (await http.get(f"{PATH}/{response_id}")).json() == cancelled
    assert (await http.post(f"{PATH}/{response_id}/cancel")).json() == cancelled
    if streams:
        text = (await http.get(f"{PATH}/{response_id}", params={"stream": "true"})).text
        name, last = list(events(text))[-1]
        check(last, "ResponseStreamEvent")
        assert (name, last["response"]["status"]) == ("response.incomplete", "cancelled")
    asked = {"input": "and?", "previous_response_id": response_id}
    error = error_of(await http.post(PATH, json=asked))
    assert error["param"] == "previous_response_id"
    assert f'"{response_id}" is cancelled; a conversation goes on only' in error["message"]


@openai_spec.needs_spec
@pytest.mark.parametrize("streams", [False, True])
async def test_one_that_fails_says_so_later(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router, streams: bool
) -> None:
    scheduler.error = "the numbers came out wrong"
    answer = await http.post(PATH, json=ASKED | {"stream": streams})
    assert answer.status_code == 200
    if streams:
        *_, (error_name, _), (last_name, last) = events(answer.text)
        assert (error_name, last_name) == ("error", "response.failed")
        response_id = last["response"]["id"]
    else:
        response_id = answer.json()["id"]
    failed = await ended(http, response_id)
    check(failed, "Response")
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "server_error", "message": "the numbers came out wrong"}


async def test_what_cannot_be_served_is_refused_at_once(
    http: httpx.AsyncClient, router: Router
) -> None:
    router.backend.engine.draining = True
    assert (await http.post(PATH, json=ASKED)).status_code == 503
    assert router.backend.permits.num_taken == 0


async def test_it_takes_a_permit(start_router: StartRouter, scheduler: FakeScheduler) -> None:
    """That of the request which began it."""
    scheduler.hold_at = 0
    async with (
        start_router(max_in_flight=1) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        first = (await http.post(PATH, json=ASKED)).json()
        assert (await http.post(PATH, json=ASKED)).status_code == 429
        assert router.backend.permits.num_taken == 1
        scheduler.hold_at = None
        assert (await ended(http, first["id"]))["status"] == "completed"


async def test_events_that_run_are_bounded(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    """However many tokens a batch has: here each comes by itself, when the one before was told."""
    scheduler.hold_at = 4
    text = ""
    async with (
        start_router(max_stored_bytes=4000) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        asked = ASKED | {"stream": True, "input": "x" * 150}
        async with asyncio.timeout(20), http.stream("POST", PATH, json=asked) as stream:
            async for part in stream.aiter_text():
                text += part
                scheduler.hold_at = 4 + text.count("output_text.delta\n")
        *_, (_, error), (name, failed) = events(text)
        assert (name, error["code"]) == ("response.failed", "rate_limit_exceeded")
        assert "take up" in error["message"]
        assert "it may be 4000" in failed["response"]["error"]["message"]
        await until(lambda: router.backend.permits.num_taken == 0)
        assert router.backend.background._room.num_bytes == 0
        assert (await http.get(f"{PATH}/{failed['response']['id']}")).status_code == 404


async def test_there_may_be_no_room_for_another_now(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    async with (
        start_router(max_stored_bytes=4000) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        router.backend.background._room.take(4000)
        refused = await http.post(PATH, json=ASKED)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert scheduler.submits == []
        router.backend.background._room.leave(4000)
        assert (await http.post(PATH, json=ASKED)).status_code == 200


async def test_one_that_runs_can_be_deleted(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 2
    running = (await http.post(PATH, json=ASKED)).json()
    asked = {"input": "and?", "previous_response_id": running["id"]}
    error = error_of(await http.post(PATH, json=asked))
    assert "is in_progress; a conversation goes on only" in error["message"]
    deleted = await http.delete(f"{PATH}/{running['id']}")
    assert deleted.json()["deleted"] is True
    await until(lambda: router.backend.permits.num_taken == 0)
    assert (await http.get(f"{PATH}/{running['id']}")).status_code == 404
    assert len(router.backend.responses) == 0


async def test_a_router_that_ends_ends_it(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 2
    async with start_router() as router:
        async with httpx.AsyncClient(base_url=router.address) as http:
            assert (await http.post(PATH, json=ASKED)).status_code == 200
        router.backend.engine.end_all("the server had to stop")
        await until(lambda: router.backend.permits.num_taken == 0)
        [response] = [entry.response for entry in router.backend.responses._entries.values()]
        assert response.body["status"] == "failed"


async def test_a_router_that_is_closed_leaves_nothing_running(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    scheduler.hold_at = 2
    async with start_router() as router, httpx.AsyncClient(base_url=router.address) as http:
        assert (await http.post(PATH, json=ASKED)).status_code == 200
        assert router.backend.permits.num_taken == 1
    await until(lambda: router.backend.permits.num_taken == 0)
    assert router.backend.background._runs == {}


ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "be kind"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "add"}]},
    {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "so", "annotations": []}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "2"},
]


@openai_spec.needs_spec
async def test_input_items_are_listed(http: httpx.AsyncClient) -> None:
    response = (await http.post(PATH, json={"input": ITEMS})).json()
    path = f"{PATH}/{response['id']}/input_items"
    listed = (await http.get(path, params={"order": "asc"})).json()
    check(listed, "ResponseItemList")
    kinds = [item.get("type", "message") for item in ITEMS]
    assert [item["type"] for item in listed["data"]] == kinds
    assert listed["data"][2]["id"] == "r1"
    ids = [item["id"] for item in listed["data"]]
    assert len(set(ids)) == len(ids)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (ids[0], ids[-1], False)
    page = (await http.get(path, params={"limit": 3})).json()
    assert [item["id"] for item in page["data"]] == ids[:-4:-1]
    assert page["has_more"] is True
    after = {"limit": 100, "after": page["last_id"]}
    rest = (await http.get(path, params=after)).json()
    assert [item["id"] for item in rest["data"]] == ids[-4::-1]
    assert rest["has_more"] is False
    empty = (await http.get(path, params={"after": rest["last_id"]})).json()
    check(empty, "ResponseItemList")
    assert empty["data"] == []


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("", {"stream": "yes"}, "stream", 'stream is "yes"; it must be true or false'),
    ("", {"stream": "true"}, "stream", "stream is true; events are kept only of a response"),
    (
        "",
        {"starting_after": 3},
        "starting_after",
        "starting_after is 3; it needs stream to be true",
    ),
    ("", {"include_obfuscation": "true"}, "include_obfuscation", "include_obfuscation is true"),
    ("", {"include": "x"}, "include", "include is not a parameter of this endpoint"),
    ("/input_items", {"limit": 0}, "limit", "limit is 0; it must be at least 1"),
    ("/input_items", {"limit": 101}, "limit", "limit is 101; it must be at most 100"),
    ("/input_items", {"limit": "x"}, "limit", 'limit is "x"; it must be a whole number'),
    ("/input_items", {"order": "up"}, "order", 'order is "up"; it must be asc or desc'),
    ("/input_items", {"after": "x"}, "after", 'after is "x"; no input item has that id'),
    ("/input_items", {"before": "x"}, "before", "before is not a parameter of this endpoint"),
]


@pytest.mark.parametrize(("path", "query", "param", "message"), WRONG)
async def test_what_is_wrong_to_ask_of_one_that_is_kept(
    http: httpx.AsyncClient, path: str, query: dict[str, Any], param: str, message: str
) -> None:
    kept = (await http.post(PATH, json={"input": "x"})).json()
    error = error_of(await http.get(f"{PATH}/{kept['id']}{path}", params=query))
    assert error["message"].startswith(message)
    assert error["param"] == param


async def test_only_what_is_in_the_background_can_be_cancelled(http: httpx.AsyncClient) -> None:
    kept = (await http.post(PATH, json={"input": "x"})).json()
    error = error_of(await http.post(f"{PATH}/{kept['id']}/cancel"))
    assert error["message"].endswith("only such can be cancelled")
    assert (await http.post(f"{PATH}/nothing/cancel")).status_code == 404
    assert (await http.get(f"{PATH}/nothing/input_items")).status_code == 404


async def test_the_background_needs_a_store(start_router: StartRouter) -> None:
    async with (
        start_router(max_stored_bytes=0) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        error = error_of(await http.post(PATH, json=ASKED))
        assert "keeps no responses" in error["message"]
    async with start_router() as router, httpx.AsyncClient(base_url=router.address) as http:
        error = error_of(await http.post(PATH, json=ASKED | {"store": False}))
        assert error["message"] == "background is true; it needs store to be true"
