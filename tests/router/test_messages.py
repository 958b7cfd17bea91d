"""Anthropic's Messages: the official client, every event, and what is refused."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx
import pytest

from router.server import Router
from tests.openai_spec import events
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler

PATH = "/v1/messages"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "hello 🙂"}],
}
ANSWER = "user\nhello 🙂"
"""The chat template's prompt, repeated up to its first end token."""


@pytest.fixture
async def claude(router: Router) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=router.address, api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


def error_of(response: httpx.Response, status: int) -> str:
    """The message of an error, which must have Anthropic's shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert (set(body), body["type"]) == ({"type", "error", "request_id"}, "error")
    assert set(body["error"]) == {"type", "message"}
    message: str = body["error"]["message"]
    return message


async def test_models(claude: anthropic.AsyncAnthropic, http: httpx.AsyncClient) -> None:
    page = await claude.models.list()
    [listed] = [model async for model in page]
    assert (listed.id, listed.type, listed.display_name) == ("tiny", "model", "tiny")
    assert abs((datetime.now(UTC) - listed.created_at).total_seconds()) < 3600
    assert listed.max_input_tokens == 256
    assert (page.first_id, page.last_id, page.has_more) == ("tiny", "tiny", False)
    assert (await claude.models.retrieve("tiny")) == listed
    for empty in (
        await claude.models.list(after_id="tiny"),
        await claude.models.list(before_id="tiny"),
    ):
        assert (empty.data, empty.first_id, empty.has_more) == ([], None, False)
    with pytest.raises(anthropic.NotFoundError, match='model "other" does not exist') as caught:
        await claude.models.retrieve("other")
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
    assert (await http.get("/v1/models/tiny")).json()["object"] == "model"


async def test_a_message_is_answered(claude: anthropic.AsyncAnthropic) -> None:
    message = await claude.messages.create(**ASKED)
    assert (message.role, message.stop_reason, message.stop_sequence) == (
        "assistant",
        "end_turn",
        None,
    )
    assert [block.model_dump(exclude_none=True) for block in message.content] == [
        {"type": "text", "text": ANSWER}
    ]
    usage = message.usage
    counted = await claude.messages.count_tokens(model="tiny", messages=ASKED["messages"])
    assert usage.cache_read_input_tokens is not None
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert usage.cache_read_input_tokens == counted.input_tokens - 1
    assert usage.output_tokens > 0


@pytest.mark.parametrize("said", [{}, {"max_tokens": 3}, {"stop_sequences": ["o 🙂"]}], ids=str)
async def test_streamed_it_is_the_same(
    claude: anthropic.AsyncAnthropic, said: dict[str, Any]
) -> None:
    whole = await claude.messages.create(**(ASKED | said))
    async with claude.messages.stream(**(ASKED | said)) as stream:
        texts = [text async for text in stream.text_stream]
        streamed = await stream.get_final_message()
    assert len(texts) > 1
    different = {"id": streamed.id}
    assert streamed.model_dump() == whole.model_dump() | different | {
        "content": [block.model_dump() for block in whole.content]
    }


async def test_why_it_stopped(claude: anthropic.AsyncAnthropic) -> None:
    cut = await claude.messages.create(**(ASKED | {"max_tokens": 3}))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)
    stopped = await claude.messages.create(**ASKED, stop_sequences=["nothing", "hel"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "hel")
    assert [getattr(block, "text", None) for block in stopped.content] == ["user\n"]


async def test_the_events_of_a_stream(http: httpx.AsyncClient) -> None:
    response = await http.post(PATH, json=ASKED | {"stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    told = list(events(response.text))
    assert all(name == data["type"] for name, data in told)
    names = [name for name, _ in told]
    num_deltas = len(names) - 5
    assert num_deltas >= 2
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * num_deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = told[0][1]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["output_tokens"] == 0


async def test_a_conversation_as_blocks(
    claude: anthropic.AsyncAnthropic, http: httpx.AsyncClient, router: Router
) -> None:
    """Results are turns of their own; hints about caching change nothing."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "add"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "so:"},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "t2", "name": "add", "input": {"a": 2}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "2"},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
                {"type": "text", "text": "and?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    system = [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]
    body = {"messages": messages, "system": system}
    counted = (await http.post(f"{PATH}/count_tokens", json=body)).json()["input_tokens"]
    tiny = router.backend.model.tokenizer
    prompt = (
        "<|im_start|>system\nbe\nbrief<|im_end|>\n<|im_start|>user\nadd<|im_end|>\n"
        "<|im_start|>assistant\nso:<|im_end|>\n<|im_start|>tool\n2<|im_end|>\n"
        "<|im_start|>tool\nError: no<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert counted == len(tiny.encode(prompt, add_special_tokens=False))


async def test_the_last_turn_of_the_assistant_is_gone_on_with(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    messages = [*ASKED["messages"], {"role": "assistant", "content": "the quick"}]
    response = await http.post(PATH, json=ASKED | {"messages": messages, "max_tokens": 1})
    assert response.status_code == 200
    [submit] = scheduler.submits
    tokens = [int.from_bytes(submit.token_id[i : i + 4], "little") for i in range(0, 4000, 4)]
    prompt = router.backend.model.tokenizer.decode(
        tokens[: submit.num_prompt_tokens], skip_special_tokens=False
    )
    assert prompt.endswith("<|im_start|>assistant\nthe quick")


async def test_labels_and_hints_change_nothing(http: httpx.AsyncClient) -> None:
    hint = {"type": "ephemeral", "ttl": "1h"}
    said = {
        "metadata": {"user_id": "u1"},
        "cache_control": hint,
        "service_tier": "auto",
        "tools": [{"name": "add", "type": "custom", "cache_control": hint}],
        "tool_choice": {"type": "none"},
        "thinking": {"type": "disabled"},
        "stop_sequences": [],
    }
    plain = (await http.post(PATH, json=ASKED)).json()
    labelled = (await http.post(PATH, json=ASKED | said)).json()
    assert (labelled["content"], labelled["stop_reason"]) == (plain["content"], "end_turn")


@pytest.mark.parametrize("streams", [False, True])
async def test_the_stop_sequence_that_ended_it_is_said(
    claude: anthropic.AsyncAnthropic, streams: bool
) -> None:
    asked = ASKED | {"stop_sequences": ["nothing", "lo"]}
    if streams:
        async with claude.messages.stream(**asked) as stream:
            message = await stream.get_final_message()
    else:
        message = await claude.messages.create(**asked)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "lo")
    assert getattr(message.content[0], "text", None) == "user\nhel"


async def test_a_long_prompt_can_be_counted(http: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 5000}]}
    counted = await http.post(f"{PATH}/count_tokens", json=body)
    assert counted.json()["input_tokens"] > 256
    assert "256" in error_of(await http.post(PATH, json=body | {"max_tokens": 1}), 400)


USER = {"role": "user"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens is missing"),
    ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
    ({"messages": []}, "messages has 0 entries; it must have at least 1"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role is"),
    (
        {"messages": [{**USER, "content": 3}]},
        "messages[0].content is 3; it must be a string or an array",
    ),
    (
        {"messages": [{**USER, "content": [{"type": "image"}]}]},
        'messages[0].content[0].type is "image"; this server accepts only text, tool_result',
    ),
    (
        {"messages": [{**USER, "content": [{"type": "text"}]}]},
        "messages[0].content[0].text is missing",
    ),
    (
        {"messages": [{**USER, "content": [{"type": "tool_result"}]}]},
        "messages[0].content[0].tool_use_id is missing",
    ),
    ({"system": [{"type": "image"}]}, 'system[0].type is "image"'),
    ({"temperature": 3}, "temperature is 3; it must be at most 2"),
    ({"top_k": 1.5}, "top_k is 1.5; it must be an integer"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences has 17 strings; it must have at most 16"),
    ({"stop_sequences": "x"}, 'stop_sequences is "x"; it must be an array'),
    ({"tools": [{"name": "web", "type": "web_search_20250305"}]}, "tools[0].type is"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, 'tools[0] has the name "a b"'),
    ({"tool_choice": {"type": "any"}}, "tool_choice asks for a call, and tools has 0 entries"),
    ({"tool_choice": {"type": "some"}}, 'tool_choice.type is "some"; it must be one of'),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        'thinking.type is "enabled"; model "tiny" does not think',
    ),
    ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display is"),
    ({"thinking": {"type": "adaptive", "depth": 3}}, "thinking.depth is not a field"),
    ({"stop": ["x"]}, "stop is not a field of this endpoint; did you mean stop_sequences?"),
    ({"metadata": {"user_id": 3}}, "metadata.user_id is 3; it must be a string"),
    ({"metadata": {"team": "a"}}, "metadata.team is not a field"),
    ({"cache_control": {"type": "eternal"}}, "cache_control.type is"),
    ({"service_tier": "fast"}, "service_tier is"),
    ({"user_profile_id": "u"}, 'user_profile_id is "u"; it is not supported'),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
    ({"tools": [{"name": "a", "colour": 1}]}, "tools[0].colour is not a field of this endpoint"),
    ({"tools": [{"name": "a", "defer_loading": True}]}, "tools[0].defer_loading is true"),
    ({"tools": [{"name": "a", "input_examples": [{}]}]}, "tools[0].input_examples is [{}]"),
    ({"output_config": {"effort": "none"}}, 'output_config.effort is "none"'),
    ({"thinking": {"type": "maybe"}}, 'thinking.type is "maybe"'),
    ({"container": "c"}, 'container is "c"; it is not supported by this server'),
    ({"mcp_servers": [{}]}, "mcp_servers is [{}]; it is not supported"),
]


@pytest.mark.parametrize(("said", "message"), WRONG, ids=lambda value: str(value)[:40])
async def test_what_is_wrong(http: httpx.AsyncClient, said: dict[str, Any], message: str) -> None:
    assert error_of(await http.post(PATH, json=ASKED | said), 400).startswith(message)


async def test_errors_have_their_types(
    http: httpx.AsyncClient, claude: anthropic.AsyncAnthropic, start_router: StartRouter
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="other"):
        await claude.messages.create(**(ASKED | {"model": "other"}))
    assert "POST" in error_of(await http.get(PATH), 405)
    assert "Content-Type" in error_of(await http.post(PATH, content=b"{}"), 415)
    async with start_router(api_key="secret") as router:
        for key, right in (("secret", True), ("wrong", False)):
            async with anthropic.AsyncAnthropic(
                base_url=router.address, api_key=key, max_retries=0
            ) as client:
                if right:
                    assert (await client.messages.create(**ASKED)).content
                    continue
                with pytest.raises(anthropic.AuthenticationError) as caught:
                    await client.messages.create(**ASKED)
                assert caught.value.body is not None


async def test_an_error_in_a_stream_is_its_last_event(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 3
    text = ""
    async with http.stream("POST", PATH, json=ASKED | {"stream": True}) as response:
        async for part in response.aiter_text():
            text += part
            scheduler.error = "the numbers came out wrong"
            scheduler.hold_at = None
    name, last = list(events(text))[-1]
    assert (name, last["type"]) == ("error", "error")
    assert last["error"] == {"type": "api_error", "message": "the numbers came out wrong"}
    assert "message_stop" not in text
    assert router.backend.engine._samples == {}


async def test_a_silent_stream_pings(
    http: httpx.AsyncClient, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.answers.KEEP_ALIVE_S", 0.02)
    scheduler.hold_at = 0
    text = ""
    async with http.stream("POST", PATH, json=ASKED | {"stream": True}) as response:
        async for part in response.aiter_text():
            text += part
            if text.count("event: ping") >= 2:
                scheduler.hold_at = None
    names = [name for name, _ in events(text)]
    assert names[:3] == ["message_start", "ping", "ping"]
    assert names.count("message_start") == 1
    assert names[-1] == "message_stop"


async def test_leaving_ends_it(
    http: httpx.AsyncClient, scheduler: FakeScheduler, router: Router
) -> None:
    scheduler.hold_at = 3
    async with http.stream("POST", PATH, json=ASKED | {"stream": True}) as response:
        assert await anext(response.aiter_lines()) == "event: message_start"
    await until(lambda: len(scheduler.aborted) == 1)
    assert router.backend.engine._samples == {}
