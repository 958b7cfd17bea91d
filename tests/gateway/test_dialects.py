"""A stream says what the whole answer says, in each dialect, however the text was cut."""

import json
import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.anthropic.conversation import conversation_of
from gateway.anthropic.messages import MessagesAnswer, parse_messages
from gateway.anthropic.schema import CountTokensBody
from gateway.detokenizer import Detokenizer
from gateway.model import Model, load_model
from gateway.openai.response_answer import ResponsesAnswer
from gateway.openai.responses import ResponseCall, StoredResponse, parse_response
from gateway.output import Finish, FinishReason, Piece, TokenLogprob
from tests.gateway import tiny_model
from tests.openai_spec import events

LENGTH = 4096
TEMPLATE = Path(__file__).parent / "templates" / "hermes.jinja"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris é🙂"}}\n</tool_call>'
FRAGMENTS = [
    *("<think>", "</think>", CALL, CALL, "<tool_call>", "</tool_call>", "\n", " ", "words, ", "🙂"),
    *('{"name": "get_weather", "arguments": {', '"a": 1', "}", "東京", "<", "x"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=10).map(
    "".join
)
CUTS = st.lists(st.integers(0, 1 << 16), max_size=12)
FINISHES = st.sampled_from(
    [(FinishReason.STOP, None), (FinishReason.STOP, "END"), (FinishReason.LENGTH, None)]
)
Ending = tuple[FinishReason, str | None]
FINISHED: Ending = (FinishReason.STOP, None)


@pytest.fixture(scope="session")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tiny_model.build(tmp_path_factory.mktemp("dialects") / "tiny")
    return load_model(directory, chat_template=TEMPLATE)


def pieces_of(text: str, cuts: Iterable[int], ending: Ending) -> list[Piece]:
    """The text cut anywhere, and so without the tokens that it would be made of."""
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in cuts)})
    texts = [text[start:end] for start, end in pairwise(places)]
    finish = Finish(*ending, num_prompt_tokens=9, num_output_tokens=7, num_cached_tokens=4)
    return [
        *(Piece(0, part, [], None, None) for part in texts),
        Piece(0, "", [], None, finish),
    ]


def plain(answer: Any) -> Any:
    """Less the ids of calls, which each reading makes anew."""
    if isinstance(answer, list):
        return [plain(value) for value in answer]
    if isinstance(answer, dict):
        return {
            name: "an id" if str(value).startswith("call_") else plain(value)
            for name, value in answer.items()
        }
    return answer


def message_of(stream: str) -> dict[str, Any]:
    """What a client of Anthropic's puts together from the events."""
    message: dict[str, Any] = {}
    partial: dict[int, str] = {}
    for name, event in events(stream):
        match name:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                match delta.pop("type"):
                    case "input_json_delta":
                        index = event["index"]
                        partial[index] = partial.get(index, "") + delta["partial_json"]
                    case _:
                        [(field, text)] = delta.items()
                        block[field] += text
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    for index, text in partial.items():
        try:
            message["content"][index]["input"] = json.loads(text)
        except ValueError:
            message["content"][index]["input"] = "cut"
    return message


def messages_answer(model: Model) -> MessagesAnswer:
    tools = [{"name": "get_weather", "input_schema": SCHEMA}]
    body = {"max_tokens": 99, "messages": [{"role": "user", "content": "hello"}], "tools": tools}
    call = parse_messages(json.dumps(body).encode(), model, LENGTH, "r1", random.Random())
    return MessagesAnswer(call, model.tokenizer)


@settings(max_examples=400, deadline=None)
@given(TEXTS, CUTS, FINISHES)
@example(f"<think>\nhm</think>so {CALL}{CALL} and", [3, 40, 77], (FinishReason.STOP, None))
@example("", [], (FinishReason.LENGTH, None))
def test_anthropics_messages(hermes: Model, text: str, cuts: list[int], ending: Ending) -> None:
    whole_answer = messages_answer(hermes)
    whole_answer.collect(pieces_of(text, (), ending))
    whole = plain(whole_answer.whole())
    streaming = messages_answer(hermes)
    stream = b"".join(streaming.events([piece]) for piece in pieces_of(text, cuts, ending))
    streamed = plain(message_of((stream + streaming.closing_events()).decode()))
    for ours, theirs in zip(whole["content"], streamed["content"], strict=True):
        if theirs.get("input") == "cut":
            theirs["input"] = ours["input"]  # what clients make of half an object differs
    assert streamed == whole
    assert [block["type"] for block in whole["content"]] != []


def response_answer(
    model: Model, kept: list[StoredResponse], *, stores: bool = True, **said: Any
) -> ResponsesAnswer:
    tools = [{"type": "function", "name": "get_weather", "parameters": SCHEMA}]
    body = {"input": "hello", "tools": tools, "store": stores, **said}

    def find(response_id: str) -> StoredResponse:
        raise AssertionError(response_id)

    call = parse_response(
        json.dumps(body).encode(), model, LENGTH, "r1", random.Random(), find=find
    )
    assert isinstance(call, ResponseCall)
    return ResponsesAnswer(call, model.tokenizer, lambda _, response: kept.append(response))


def output_of(stream: str) -> list[dict[str, Any]]:
    """What a client of OpenAI's puts together from the deltas alone."""
    output: list[dict[str, Any]] = []
    for name, event in events(stream):
        match name.removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(output)
                output.append(event["item"])
            case "content_part.added":
                output[event["output_index"]]["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                item = output[event["output_index"]]
                assert event["item_id"] == item["id"]
                item["content"][event["content_index"]]["text"] += event["delta"]
            case "function_call_arguments.delta":
                output[event["output_index"]]["arguments"] += event["delta"]
            case "output_item.done":
                output[event["output_index"]]["status"] = event["item"]["status"]
                assert output[event["output_index"]] == event["item"]
    return output


def without_id(response: dict[str, Any]) -> dict[str, Any]:
    name = response["id"].removeprefix("resp_")
    kept: dict[str, Any] = plain(json.loads(json.dumps(response).replace(name, "NAME")))
    return kept | {"created_at": 0}


@settings(max_examples=400, deadline=None)
@given(TEXTS, CUTS, FINISHES)
@example(f"<think>\nhm</think>so {CALL}{CALL} and", [3, 40, 77], (FinishReason.STOP, None))
@example("", [], (FinishReason.LENGTH, None))
def test_openais_responses(hermes: Model, text: str, cuts: list[int], ending: Ending) -> None:
    kept: list[StoredResponse] = []
    whole_answer = response_answer(hermes, kept)
    whole_answer.collect(pieces_of(text, (), ending))
    whole = whole_answer.whole()
    streaming = response_answer(hermes, kept)
    told = b"".join(streaming.events([piece]) for piece in pieces_of(text, cuts, ending))
    stream = (told + streaming.closing_events()).decode()
    *_, (_, last) = events(stream)
    assert without_id(last["response"]) == without_id(whole)
    assert output_of(stream) == last["response"]["output"]
    assert [response.body["output"] for response in kept] == [
        whole["output"],
        last["response"]["output"],
    ]
    assert [turn.role for turn in kept[0].turns] == ["user", "assistant"]


def with_logprobs(model: Model, text: str, cuts: Iterable[int], ending: Ending) -> list[Piece]:
    """The text as the tokens that it is made of, some at a time, each with its logprob."""
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    places = sorted({0, len(tokens), *(place % (len(tokens) + 1) for place in cuts)})
    finish = Finish(*ending, num_prompt_tokens=9, num_output_tokens=7, num_cached_tokens=4)
    detokenizer = Detokenizer(model.tokenizer.visible_bytes_of)
    pieces = []
    for start, end in pairwise(places):
        part = tokens[start:end]
        rows = [
            TokenLogprob(token, -float(number), 1, ())
            for number, token in enumerate(part, start=start)
        ]
        pieces.append(Piece(0, detokenizer.feed(part), part, rows, None))
    return [*pieces, Piece(0, detokenizer.close(), [], [], finish)]


@settings(max_examples=300, deadline=None)
@given(TEXTS, CUTS, FINISHES)
@example(f"<think>\nhm 🙂</think>so 🙂 {CALL} and <tool_call> not {CALL}", [3, 40], FINISHED)
@example(f"{CALL} 東京", [], FINISHED)  # one token is the space and part of what comes after it
def test_the_logprobs_of_words_are_those_of_their_tokens(
    hermes: Model, text: str, cuts: list[int], ending: Ending
) -> None:
    """Streamed or not, however the tokens arrive; and thoughts and calls have none."""
    said: dict[str, Any] = {"include": ["message.output_text.logprobs"]}
    whole_answer = response_answer(hermes, [], **said)
    whole_answer.collect(with_logprobs(hermes, text, (), ending))
    whole = whole_answer.whole()
    streaming = response_answer(hermes, [], **said)
    pieces = with_logprobs(hermes, text, cuts, ending)
    stream = b"".join(streaming.events([piece]) for piece in pieces) + streaming.closing_events()
    told = [event for _, event in events(stream.decode())]
    assert without_id(told[-1]["response"])["output"] == without_id(whole)["output"]
    told_again: dict[int, list[Any]] = {}
    for event in told:
        if event["type"] == "response.output_text.delta":
            told_again.setdefault(event["output_index"], []).extend(event["logprobs"])
    numbers: list[float] = []
    for index, item in enumerate(whole["output"]):
        if item["type"] != "message":
            continue
        [part] = item["content"]
        assert told_again.get(index, []) == part["logprobs"]
        spelt = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"])
        assert part["text"].encode() in spelt or "\ufffd" in part["text"]
        numbers += [-entry["logprob"] for entry in part["logprobs"]]
    assert numbers == sorted(set(numbers))


def said_types(whole: Sequence[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in whole]


def test_blocks_come_in_the_order_of_the_text(hermes: Model) -> None:
    text = f"<think>\nhm\n</think>\n\nso {CALL}\n{CALL} and"
    pieces = pieces_of(text, (), (FinishReason.STOP, None))
    messages = messages_answer(hermes)
    messages.collect(pieces)
    message = messages.whole()
    assert said_types(message["content"]) == ["thinking", "text", "tool_use", "tool_use", "text"]
    assert message["content"][2]["input"] == {"city": "Paris é🙂"}
    assert message["stop_reason"] == "tool_use"
    kept: list[StoredResponse] = []
    responses = response_answer(hermes, kept)
    responses.collect(pieces)
    output = responses.whole()["output"]
    assert said_types(output) == ["reasoning", "message", *["function_call"] * 2, "message"]
    assert json.loads(output[2]["arguments"]) == {"city": "Paris é🙂"}
    [response] = kept
    last = response.turns[-1]
    assert (last.reasoning, [call.name for call in last.tool_calls]) == ("hm", ["get_weather"] * 2)


def test_a_call_that_was_cut_says_what_there_is(hermes: Model) -> None:
    answer = messages_answer(hermes)
    answer.collect(pieces_of(CALL[:60], (), (FinishReason.LENGTH, None)))
    whole = answer.whole()
    assert whole["stop_reason"] == "max_tokens"
    assert whole["content"][0]["input"] == {"city": "P"}


def test_what_is_not_stored_is_not_kept(hermes: Model) -> None:
    kept: list[StoredResponse] = []
    answer = response_answer(hermes, kept, stores=False)
    answer.collect(pieces_of("hello", (), (FinishReason.STOP, None)))
    assert answer.whole()["store"] is False
    assert kept == []


def test_one_call_at_a_time(model: Model) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    body = {"messages": [{"role": "user", "content": "x"}], "tool_choice": choice}
    assert not conversation_of(CountTokensBody.model_validate(body), model).parallel_tool_calls
