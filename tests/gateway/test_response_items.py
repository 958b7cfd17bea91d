"""Items of a response: what is read of them is what is listed, as OpenAI lists it."""

import json
from random import Random
from typing import Any

import pytest

from gateway.model import Model
from gateway.openai.response_items import input_turns, listed_items
from gateway.openai.responses import ResponseCall, parse_response
from tests import openai_spec
from tests.gateway.test_refusals import nothing_is_stored
from tests.gateway.tiny_model import MAX_MODEL_LEN


def thoughts(kind: str, *texts: str) -> list[dict[str, str]]:
    return [{"type": kind, "text": text} for text in texts]


def parsed(model: Model, **said: Any) -> ResponseCall:
    content = json.dumps({"input": "a", **said}).encode()
    return parse_response(content, model, MAX_MODEL_LEN, "r1", Random(), nothing_is_stored)


@pytest.mark.parametrize(
    ("said", "read", "listed"),
    [
        ({"summary": []}, None, {"summary": []}),
        (
            {"summary": [{"text": "in short"}]},
            "in short",
            {"summary": thoughts("summary_text", "in short")},
        ),
        (
            {
                "summary": thoughts("summary_text", "in short"),
                "content": thoughts("text", "at", "length"),
            },
            "at\nlength",
            {
                "summary": thoughts("summary_text", "in short"),
                "content": thoughts("reasoning_text", "at", "length"),
            },
        ),
    ],
    ids=["none", "summary", "both"],
)
@openai_spec.needs_spec
def test_thoughts_are_listed_with_their_summary(
    said: dict[str, Any], read: str | None, listed: dict[str, Any]
) -> None:
    items = [{"type": "reasoning", "id": "rs_1", **said}]
    [turn] = input_turns(items)
    assert turn.reasoning == read
    [item] = listed_items(items, "resp_1")
    assert item == {"type": "reasoning", "id": "rs_1", "status": "completed", **listed}
    openai_spec.check(item, "ReasoningItem")


def test_items_without_an_id_get_each_their_own() -> None:
    said = [{"role": "user", "content": "a", "id": item_id} for item_id in ("mine", "", None)]
    assert input_turns(said)
    ids = [item["id"] for item in listed_items(said, "resp_7")]
    assert ids == ["mine", "item_70001", "item_70002"]


@pytest.mark.parametrize(
    ("said", "repeated"),
    [
        ({}, {"effort": None, "summary": None}),
        ({"effort": "medium"}, {"effort": "medium", "summary": None}),
        ({"summary": "auto"}, {"effort": None, "summary": "auto"}),
        ({"generate_summary": "auto"}, {"effort": None, "summary": "auto"}),
    ],
    ids=str,
)
def test_a_response_repeats_what_was_said_of_its_thoughts(
    model: Model, said: dict[str, Any], repeated: dict[str, Any]
) -> None:
    assert parsed(model, reasoning=said).said["reasoning"] == repeated
