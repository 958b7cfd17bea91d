"""A misspelt field is refused by name wherever it stands; what clients send back is taken."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.anthropic.messages import parse_messages
from gateway.errors import Fault, RequestError
from gateway.model import Model, load_model
from gateway.openai.chat import parse_chat
from gateway.openai.responses import StoredResponse, parse_response
from tests.gateway import tiny_model

LENGTH = 4096
TEMPLATE = Path(__file__).parent / "templates" / "hermes.jinja"
HELLO = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {}}


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tiny_model.build(tmp_path_factory.mktemp("unknown") / "tiny")
    return load_model(directory, chat_template=TEMPLATE)


def nothing_is_stored(response_id: str) -> StoredResponse:
    raise RequestError(Fault.UNKNOWN_RESPONSE, response_id)


def read(model: Model, name: str, said: dict[str, Any]) -> Any:
    content = json.dumps(said).encode()
    arguments = (model, LENGTH, "r1", random.Random())
    if name == "chat":
        return parse_chat(content, *arguments)
    if name == "message":
        return parse_messages(content, *arguments)
    return parse_response(content, *arguments, nothing_is_stored)


def chat(*messages: Any, **said: Any) -> tuple[str, dict[str, Any]]:
    return "chat", {"messages": [HELLO, *messages], **said}


def message(*messages: Any, **said: Any) -> tuple[str, dict[str, Any]]:
    return "message", {"messages": [HELLO, *messages], "max_tokens": 4, **said}


def block(role: str, **block: Any) -> tuple[str, dict[str, Any]]:
    return message({"role": role, "content": [block]})


def response(*items: Any, **said: Any) -> tuple[str, dict[str, Any]]:
    return "response", {"input": [HELLO, *items], **said}


def function(**said: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **said}}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
NAMED = {"type": "function", "function": {"name": "f"}}
STREAM: dict[str, Any] = {"stream": True}
UNKNOWN = [
    # a body, the field that it does not have, and the one that may be meant
    (chat({**HELLO, "contnet": "x"}), "messages[1].contnet", "messages[1].content"),
    (
        chat({"role": "user", "content": [{"type": "text", "text": "x", "txet": "y"}]}),
        "messages[1].content[0].txet",
        "messages[1].content[0].text",
    ),
    (
        chat({"role": "assistant", "tool_calls": [{**CALL, "idd": "x"}]}),
        "messages[1].tool_calls[0].idd",
        "messages[1].tool_calls[0].id",
    ),
    (
        chat({"role": "assistant", "tool_calls": [CALL | {"function": {"nam": "f"}}]}),
        "messages[1].tool_calls[0].function.nam",
        "messages[1].tool_calls[0].function.name",
    ),
    (
        chat(tools=[function(paramters={})]),
        "tools[0].function.paramters",
        "tools[0].function.parameters",
    ),
    (chat(tools=[{**function(), "strict": True}]), "tools[0].strict", None),
    (chat(tools=[function()], tool_choice={**NAMED, "name": "f"}), "tool_choice.name", None),
    (
        chat(tools=[function()], tool_choice={**NAMED, "function": {"name": "f", "x": 1}}),
        "tool_choice.function.x",
        None,
    ),
    (
        chat(structured_outputs={"chioce": ["a"]}),
        "structured_outputs.chioce",
        "structured_outputs.choice",
    ),
    (
        chat(stream_options={"include_usge": True}, **STREAM),
        "stream_options.include_usge",
        "stream_options.include_usage",
    ),
    (response({**HELLO, "contnet": "x"}), "input[1].contnet", "input[1].content"),
    (
        response({"role": "user", "content": [{"type": "input_text", "text": "x", "x": 1}]}),
        "input[1].content[0].x",
        None,
    ),
    (
        response({"type": "function_call", "call_id": "c", "name": "f", "argument": "{}"}),
        "input[1].argument",
        "input[1].arguments",
    ),
    (
        response(
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "", "a": 1}]}
        ),
        "input[1].content[0].a",
        None,
    ),
    (
        response(tools=[{"type": "function", "name": "f", "paramters": {}}]),
        "tools[0].paramters",
        "tools[0].parameters",
    ),
    (
        response(
            tools=[{"type": "function", "name": "f"}],
            tool_choice={"type": "function", "name": "f", "strict": True},
        ),
        "tool_choice.strict",
        None,
    ),
    (response(text={"fromat": {"type": "text"}}), "text.fromat", "text.format"),
    (message({**HELLO, "contnet": "x"}), "messages[1].contnet", "messages[1].content"),
    (
        block("user", type="text", text="x", cache_contrl={}),
        "messages[1].content[0].cache_contrl",
        "messages[1].content[0].cache_control",
    ),
    (
        block("assistant", type="tool_use", id="c", name="f", input={}, inputs={}),
        "messages[1].content[0].inputs",
        "messages[1].content[0].input",
    ),
    (
        block("user", type="tool_result", tool_use_id="c", content="x", is_eror=True),
        "messages[1].content[0].is_eror",
        "messages[1].content[0].is_error",
    ),
    (
        message(system=[{"type": "text", "text": "x", "texts": "x"}]),
        "system[0].texts",
        "system[0].text",
    ),
    (
        message(tools=[{"name": "f", "input_shema": SCHEMA}]),
        "tools[0].input_shema",
        "tools[0].input_schema",
    ),
    (
        message(thinking={"type": "enabled", "budget_token": 2}),
        "thinking.budget_token",
        "thinking.budget_tokens",
    ),
    (
        message(output_config={"format": {"type": "json_schema", "schema": SCHEMA, "schem": {}}}),
        "output_config.format.schem",
        "output_config.format.schema",
    ),
]


@pytest.mark.parametrize(("body", "field", "meant"), UNKNOWN, ids=str)
def test_a_field_that_nobody_reads_is_refused_by_name(
    hermes: Model, body: tuple[str, dict[str, Any]], field: str, meant: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        read(hermes, *body)
    hint = f"; did you mean {meant}?" if meant else ""
    error = caught.value
    assert error.message == f"{field} is not a field of this endpoint{hint}"
    assert (error.fault, error.field) == (Fault.UNKNOWN_FIELD, field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (chat({"role": "assistant", "content": "x", "audio": {"id": "a"}}), "messages[1].audio"),
        (chat(structured_outputs={"structural_tag": "x"}), "structured_outputs.structural_tag"),
        (
            response(tools=[{"type": "function", "name": "f", "defer_loading": True}]),
            "tools[0].defer_loading",
        ),
        (
            block("assistant", type="tool_use", id="c", name="f", input={}, caller={"type": "x"}),
            "messages[1].content[0].caller",
        ),
    ],
    ids=str,
)
def test_what_others_serve_is_refused_as_such(
    hermes: Model, body: tuple[str, dict[str, Any]], field: str
) -> None:
    with pytest.raises(RequestError, match="it is not supported by this server") as caught:
        read(hermes, *body)
    assert (caught.value.fault, caught.value.field) == (Fault.NOT_SUPPORTED, field)


SENT_BACK = {
    # what libraries make of an answer, and send back
    "chat": chat(
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "reasoning": "hm",
            "reasoning_content": "hm",
            "parsed": {"a": 1},
            "provider_specific_fields": {"refusal": None},
            "tool_calls": [
                {
                    "id": "c1",
                    "index": 0,
                    "type": "function",
                    "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "x", "name": "f"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        },
        tools=[{**function(description="d", parameters=SCHEMA, strict=None)}],
    ),
    "response": response(
        {
            "type": "reasoning",
            "id": "rs_1",
            "status": None,
            "encrypted_content": None,
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "phase": "final_answer",
            "content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "status": "completed",
            "call_id": "c1",
            "name": "f",
            "arguments": "{}",
            "caller": {"type": "direct"},
            "namespace": None,
        },
        {"type": "function_call_output", "call_id": "c1", "output": "x", "status": "completed"},
        tools=[
            {
                "type": "function",
                "name": "f",
                "description": None,
                "parameters": SCHEMA,
                "strict": True,
                "defer_loading": False,
            }
        ],
    ),
    "message": message(
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "x", "citations": None},
                {
                    "type": "tool_use",
                    "id": "c1",
                    "name": "f",
                    "input": {},
                    "caller": {"type": "direct"},
                    "cache_control": {"type": "ephemeral"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [
                        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
                    ],
                    "is_error": False,
                    "cache_control": {"type": "ephemeral"},
                }
            ],
        },
        tools=[{"name": "f", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}],
    ),
}


@pytest.mark.parametrize("name", SENT_BACK)
def test_what_clients_send_back_is_taken(hermes: Model, name: str) -> None:
    assert read(hermes, *SENT_BACK[name]).requests


@pytest.mark.parametrize(
    "body",
    [
        chat(stream_options={"include_usage": True, "more": None}, **STREAM),
        chat({**HELLO, "more": None}),
        response(reasoning={"effort": None, "more": None}),
        message({**HELLO, "more": None}, metadata={"more": None}),
    ],
    ids=str,
)
def test_null_is_a_field_that_is_not_there(hermes: Model, body: tuple[str, dict[str, Any]]) -> None:
    assert read(hermes, *body).requests


@pytest.mark.parametrize("name", ["chat", "response"])
def test_a_tool_without_a_type_lacks_it(hermes: Model, name: str) -> None:
    _, said = SENT_BACK[name]
    tool = {field: value for field, value in said["tools"][0].items() if field != "type"}
    with pytest.raises(RequestError, match=r"^tools\[0\]\.type is missing$") as caught:
        read(hermes, name, said | {"tools": [tool]})
    assert caught.value.fault is Fault.MISSING_FIELD
