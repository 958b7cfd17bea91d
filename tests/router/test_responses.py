"""OpenAI's Responses: the official client, every event, what is kept, and what is refused."""

import json
from itertools import chain
from typing import Any

import httpx
import openai
import pytest

from gateway.conversation import ChatMessage
from gateway.errors import RequestError
from gateway.openai.responses import StoredResponse
from router.response_store import ResponseStore
from router.server import Router
from tests import openai_spec
from tests.openai_spec import check, events
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

PATH = "/v1/responses"
ASKED: dict[str, Any] = {"model": "tiny", "input": "hello 🙂"}
ANSWER = "user\nhello 🙂"
"""The chat template's prompt, repeated up to its first end token."""

SAID: list[dict[str, Any]] = [
    {},
    {"max_output_tokens": 3},
    {"instructions": "be brief", "metadata": {"a": "b"}, "user": "me"},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]},
    {"store": False, "temperature": 0.5, "top_p": 0.9, "tool_choice": "none"},
    {"tools": [{"type": "function", "name": "add"}], "tool_choice": "none"},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"max_tool_calls": 3, "truncation": "auto"},
    {"reasoning": {"effort": "medium", "summary": "auto", "context": "auto"}},
]


def without(response: dict[str, Any]) -> dict[str, Any]:
    """A response less what differs between two equal ones."""
    name = response["id"].removeprefix("resp_")
    plain: dict[str, Any] = json.loads(json.dumps(response).replace(name, "NAME"))
    return {key: value for key, value in plain.items() if key != "created_at"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def prompt_of(scheduler: FakeScheduler, router: Router) -> str:
    """What the last request had as its prompt."""
    submit = scheduler.submits[-1]
    raw = submit.token_id[: 4 * submit.num_prompt_tokens]
    tokens = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
    return router.backend.model.tokenizer.decode(tokens, skip_special_tokens=False)


async def test_a_response_is_answered(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(**ASKED)
    assert (response.output_text, response.status) == (ANSWER, "completed")
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == response.usage.input_tokens - 1
    cut = await client.responses.create(**ASKED, max_output_tokens=3)
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert getattr(cut.output[0], "status", None) == "incomplete"


@openai_spec.needs_spec
@pytest.mark.parametrize("said", SAID, ids=str)
async def test_streamed_it_is_the_same_and_both_are_valid(
    http: httpx.AsyncClient, said: dict[str, Any]
) -> None:
    whole = (await http.post(PATH, json=ASKED | said)).json()
    check(whole, "Response")
    stream = await http.post(PATH, json=ASKED | said | {"stream": True})
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    told = list(events(stream.text))
    for name, event in told:
        assert name == event["type"]
        check(event, "ResponseStreamEvent")
    assert [event["sequence_number"] for _, event in told] == list(range(len(told)))
    kinds = [name for name, _ in told]
    num_deltas = kinds.count("response.output_text.delta")
    end = "incomplete" if "max_output_tokens" in said else "completed"
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * num_deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{end}",
    ]
    assert without(told[-1][1]["response"]) == without(whole)
    text = whole["output"][0]["content"][0]["text"]
    deltas = [event["delta"] for name, event in told if name.endswith(".delta")]
    assert "".join(deltas) == text
    assert told[0][1]["response"]["status"] == "in_progress"


async def test_the_clients_own_stream(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(**ASKED) as stream:
        texts = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
        final = await stream.get_final_response()
    assert ("".join(texts), final.output_text) == (ANSWER, ANSWER)


async def test_it_goes_on_from_one_that_is_kept(
    client: openai.AsyncOpenAI, scheduler: FakeScheduler, router: Router
) -> None:
    """Streamed or not; instructions hold for one response alone."""
    first = await client.responses.create(**ASKED, instructions="be brief")
    async with client.responses.stream(
        model="tiny", input="and?", previous_response_id=first.id
    ) as stream:
        second = await stream.get_final_response()
    assert prompt_of(scheduler, router) == (
        f"<|im_start|>user\nhello 🙂<|im_end|>\n<|im_start|>assistant\n{first.output_text}"
        "<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert second.previous_response_id == first.id
    await client.responses.create(model="tiny", input="x", previous_response_id=second.id)
    assert prompt_of(scheduler, router).count("<|im_start|>") == 6


async def test_what_is_kept_can_be_had_and_deleted(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    kept = await client.responses.create(**ASKED)
    metrics = (await http.get("/metrics")).text
    assert 'quire:stored_responses{model_name="tiny"} 1.0' in metrics
    assert 'quire:stored_response_bytes{model_name="tiny"} 0.0' not in metrics
    assert (await client.responses.retrieve(kept.id)).model_dump() == kept.model_dump()
    deleted = await http.delete(f"{PATH}/{kept.id}")
    assert deleted.json() == {"id": kept.id, "object": "response", "deleted": True}
    for gone in (
        await http.get(f"{PATH}/{kept.id}"),
        await http.delete(f"{PATH}/{kept.id}"),
        await http.post(PATH, json=ASKED | {"previous_response_id": kept.id}),
    ):
        error = error_of(gone, 404)
        assert error["code"] == "response_not_found"
        assert error["message"].startswith(
            f'response "{kept.id}" is not here; a response is kept for '
        )
        assert len(error["message"]) < 120
    assert error["param"] == "previous_response_id"
    allowed = await http.put(f"{PATH}/{kept.id}")
    assert (allowed.status_code, allowed.headers["allow"]) == (405, "DELETE, GET, HEAD")


async def test_what_is_not_to_be_kept_is_not(client: openai.AsyncOpenAI, router: Router) -> None:
    assert await client.responses.create(**ASKED, store=False)
    stream = await client.responses.create(**ASKED, store=False, stream=True)
    assert [event async for event in stream]
    assert len(router.backend.responses) == 0


@pytest.mark.parametrize("said", [{"max_stored_bytes": 0}, {"response_ttl_s": 0.0}], ids=str)
async def test_a_router_that_keeps_none(start_router: StartRouter, said: dict[str, Any]) -> None:
    async with (
        start_router(**said) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        answered = (await http.post(PATH, json=ASKED)).json()
        error = error_of(await http.get(f"{PATH}/{answered['id']}"), 404)
        keeps = said.get("max_stored_bytes") != 0
        assert answered["store"] is keeps
        assert ("this server keeps none" in error["message"]) is not keeps
        asked = await http.post(PATH, json=ASKED | {"store": True})
        if keeps:
            assert asked.json()["store"] is True
        else:
            error = error_of(asked, 400)
            message = "store is true; this server keeps no responses; leave it out"
            assert (error["param"], error["message"]) == ("store", message)
            unsaid = await http.post(PATH, json=ASKED | {"store": None})
            assert unsaid.json()["store"] is False


async def test_items_become_turns(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "add"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "so", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    response = await http.post(PATH, json={"input": items, "instructions": "be brief"})
    assert response.status_code == 200
    assert prompt_of(scheduler, router) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>system\nbe kind<|im_end|>\n"
        "<|im_start|>user\nadd<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n"
        "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"
    )


@openai_spec.needs_spec
async def test_the_logprobs_of_its_words(http: httpx.AsyncClient, router: Router) -> None:
    """Those of the tokens that the text is made of, in the deltas and in the whole."""
    asked = ASKED | {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "stream": True}
    told = [event for _, event in events((await http.post(PATH, json=asked)).text)]
    for event in told:
        check(event, "ResponseStreamEvent")
    [part] = told[-1]["response"]["output"][0]["content"]
    entries = part["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == ANSWER
    # the first of all, <|im_start|>, has no text
    assert [entry["logprob"] for entry in entries] == [-float(i + 2) for i in range(len(entries))]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    of_deltas = [event["logprobs"] for event in told if event["type"].endswith("text.delta")]
    assert list(chain.from_iterable(of_deltas)) == entries
    [done] = [event for event in told if event["type"].endswith("text.done")]
    assert done["logprobs"] == entries
    plain = (await http.post(PATH, json=asked | {"stream": False})).json()
    assert plain["output"][0]["content"] == [part]
    assert (plain["top_logprobs"], router.backend.model.name) == (2, "tiny")


async def test_an_input_that_is_too_long_loses_its_first_turns(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    """As few as may be; instructions stay, and the rest begins with a user's turn."""
    turns = [
        {"role": role, "content": f"{number:02d} " + "lazy dog " * 4}
        for number in range(20)
        for role in ("user", "assistant")
    ]
    asked = {
        "input": [*turns, {"role": "user", "content": "and now?"}],
        "instructions": "be brief",
        "max_output_tokens": 20,
    }
    error = error_of(await http.post(PATH, json=asked), 400)
    assert "this model accepts at most 256" in error["message"]
    answer = (await http.post(PATH, json=asked | {"truncation": "auto"})).json()
    assert answer["truncation"] == "auto"
    prompt = prompt_of(scheduler, router)
    head, first = "<|im_start|>system\nbe brief<|im_end|>\n", "<|im_start|>user\n"
    assert prompt.startswith(head + first)
    kept = prompt.removeprefix(head + first)
    number = int(kept[:2])
    assert 10 < number < 20
    assert prompt.count("<|im_start|>user") == 21 - number
    tokens = router.backend.model.tokenizer.encode(prompt, add_special_tokens=False)
    assert len(tokens) <= 256 - 20
    more = "".join(
        f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns[:2]
    )
    num_more = len(router.backend.model.tokenizer.encode(more, add_special_tokens=False))
    assert len(tokens) + num_more > 256 - 20
    listed = (await http.get(f"{PATH}/{answer['id']}/input_items", params={"limit": 100})).json()
    assert len(listed["data"]) == 41
    alone = {"input": "x" * 5000, "truncation": "auto"}
    assert "256" in error_of(await http.post(PATH, json=alone), 400)["message"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "input is missing"),
    ({"input": []}, "input", "input is []; it must be a text or items"),
    ({"input": 3}, "input", "input is 3; it must be a string or an array"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "input[0].type is"),
    ({"input": [{"role": "robot", "content": ""}]}, "input[0].role", "input[0].role is"),
    ({"input": [{"role": "user"}]}, "input[0].content", "input[0].content is missing"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0].type",
        'input[0].content[0].type is "input_image"; this server accepts only text parts',
    ),
    (
        {"input": [{"type": "function_call", "call_id": "c"}]},
        "input[0].name",
        "input[0].name is missing",
    ),
    ({"conversation": "c"}, "conversation", 'conversation is "c"; it is not supported'),
    ({"include": ["x"]}, "include[0]", 'include[0] is "x"; it must be'),
    (
        {"include": ["reasoning.encrypted_content"]},
        "include[0]",
        'include[0] is "reasoning.encrypted_content"; it must be "message.output_text.logprobs"',
    ),
    ({"truncation": "all"}, "truncation", 'truncation is "all"; it must be one of'),
    (
        {"top_logprobs": 2},
        "top_logprobs",
        'top_logprobs is 2; it needs include to be ["message.output_text.logprobs"]',
    ),
    (
        {"top_logprobs": 21, "include": ["message.output_text.logprobs"]},
        "top_logprobs",
        "top_logprobs is 21; it must be at most 20",
    ),
    ({"max_tool_calls": -1}, "max_tool_calls", "max_tool_calls is -1; it must be at least 0"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0; it must be at least"),
    ({"max_output_tokens": 10**6}, "max_output_tokens", "max_output_tokens is 1000000"),
    (
        {"max_tokens": 5},
        "max_tokens",
        "max_tokens is not a field of this endpoint; did you mean max_output_tokens?",
    ),
    ({"n": 2}, "n", "n is 2; it is not supported"),
    ({"use_beam_search": True}, "use_beam_search", "use_beam_search is true; it is not supported"),
    ({"prompt_logprobs": 2}, "prompt_logprobs", "prompt_logprobs is 2; it is not supported"),
    ({"prompt_logprobs": 0}, "prompt_logprobs", "prompt_logprobs is 0; it is not supported"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
        "stream_options.continuous_usage_stats is true; a response says its usage at its end",
    ),
    ({"temperature": 3}, "temperature", "temperature is 3; it must be at most 2"),
    (
        {"text": {"verbosity": "low"}},
        "text.verbosity",
        'text.verbosity is "low"; it must be "medium"',
    ),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", 'text.format.type is "xml"'),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "text.format.name is"),
    ({"reasoning": {"summary": "concise"}}, "reasoning.summary", 'reasoning.summary is "conc'),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", 'reasoning.effort is "huge"'),
    (
        {"reasoning": {"effort": "high"}},
        "reasoning.effort",
        'reasoning.effort is "high"; the chat template of model "tiny" cannot be told how much',
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", 'tools[0].type is "web_search"'),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "tools[0].name is missing"),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice asks for a call, and tools has 0"),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice", "tool_choice is"),
    ({"metadata": {"x" * 65: ""}}, "metadata", "metadata has"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "metadata has 17 keys"),
]


@pytest.mark.parametrize(("said", "param", "message"), WRONG, ids=lambda value: str(value)[:40])
async def test_what_is_wrong(
    http: httpx.AsyncClient, said: dict[str, Any], param: str, message: str
) -> None:
    error = error_of(await http.post(PATH, json=ASKED | said), 400)
    assert error["message"].startswith(message)
    assert error["param"] == param


@openai_spec.needs_spec
async def test_an_error_in_a_stream_ends_it(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 3
    text = ""
    async with http.stream("POST", PATH, json=ASKED | {"stream": True}) as response:
        async for part in response.aiter_text():
            text += part
            scheduler.error = "the numbers came out wrong"
            scheduler.hold_at = None
    *_, (error_name, error), (name, failed) = events(text)
    assert (error_name, name) == ("error", "response.failed")
    assert error["message"] == "the numbers came out wrong"
    assert failed["response"]["error"]["code"] == "server_error"
    for event in (error, failed):
        check(event, "ResponseStreamEvent")
    assert len(router.backend.responses) == 0


async def test_a_silent_stream_says_that_it_is_alive(
    http: httpx.AsyncClient, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.answers.KEEP_ALIVE_S", 0.02)
    scheduler.hold_at = 0
    text = ""
    async with http.stream("POST", PATH, json=ASKED | {"stream": True}) as response:
        async for part in response.aiter_text():
            text += part
            if text.count(": still here") >= 2:
                scheduler.hold_at = None
    names = [name for name, _ in events(text)]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert (names.count("response.created"), names[-1]) == (1, "response.completed")


async def test_leaving_ends_it_and_keeps_nothing(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 3
    async with http.stream("POST", PATH, json=ASKED | {"stream": True}) as response:
        assert await anext(response.aiter_lines()) == "event: response.created"
    await until(lambda: len(scheduler.aborted) == 1)
    assert router.backend.engine._samples == {}
    assert len(router.backend.responses) == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stored(size: int) -> StoredResponse:
    return StoredResponse({"x": "y" * size}, (ChatMessage("user", "hello"),))


def test_the_store_forgets_the_oldest_first(clock: Clock) -> None:
    store = ResponseStore(max_bytes=1000, ttl_s=10, clock=clock)
    for name in "abc":
        store.keep(None, name, stored(250))
    with pytest.raises(RequestError, match='"a" is not here'):
        store.find(None, "a")
    assert store.find(None, "b").body == {"x": "y" * 250}
    assert 0 < store.num_bytes <= 1000
    store.keep(None, "large", stored(2000))
    assert len(store) == 0
    assert store.num_bytes == 0


def test_the_store_forgets_what_is_old(clock: Clock) -> None:
    store = ResponseStore(max_bytes=1000, ttl_s=10, clock=clock)
    store.keep(None, "a", stored(10))
    clock.now = 9.9
    assert store.find(None, "a")
    clock.now = 10.0
    with pytest.raises(RequestError, match="for 10 s"):
        store.find(None, "a")
    store.keep(None, "b", stored(10))
    assert len(store) == 1
    store.delete(None, "b")
    assert store.num_bytes == 0
