"""No JSON whatever gets anything but an answer or a refusal, in the other dialects, too."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.anthropic import errors as anthropic
from gateway.anthropic.messages import count_tokens, parse_messages
from gateway.anthropic.schema import MessagesBody
from gateway.conversation import ChatMessage
from gateway.errors import Fault, RequestError
from gateway.model import Model
from gateway.openai.errors import error_body
from gateway.openai.response_answer import ResponsesAnswer
from gateway.openai.responses import ResponsesBody, StoredResponse, parse_response
from gateway.openai.schema import ChatBody, CompletionBody
from gateway.openai.tokens import DetokenizeBody, TokenizeBody, TokenizeChatBody
from gateway.openai.tokens import detokenize as detokenize_body
from gateway.openai.tokens import tokenize as tokenize_body
from gateway.output import Finish, FinishReason, Piece
from tests.fuzz.messages import FUZZING
from tests.gateway.test_fuzz import JSON, SCALARS, TEXT
from tests.gateway.tiny_model import MAX_MODEL_LEN

NAMES = st.sampled_from(["f", "g"]) | TEXT
SCHEMAS = (
    st.dictionaries(
        st.sampled_from(["type", "properties", "required", "$ref", "anyOf"]),
        st.just("object") | JSON,
        max_size=3,
    )
    | JSON
)


def block(kinds: list[str]) -> st.SearchStrategy[Any]:
    """A block or part of one of these types, with whatever in its fields."""
    fields = ["text", "thinking", "id", "name", "input", "tool_use_id", "content", "is_error"]
    fields += ["summary", "call_id", "arguments", "output", "role", "refusal"]
    return st.builds(
        lambda kind, said: {"type": kind, **said},
        st.sampled_from(kinds) | SCALARS,
        st.dictionaries(st.sampled_from(fields), TEXT | JSON, max_size=4),
    )


BLOCKS = st.lists(block(["text", "thinking", "tool_use", "tool_result", "image"]), max_size=3)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | TEXT, "content": TEXT | BLOCKS}
    ),
    max_size=3,
)
PARTS = st.lists(block(["input_text", "output_text", "refusal"]), max_size=2)
ITEMS = st.lists(
    st.one_of(
        block(["function_call", "function_call_output", "reasoning", "item_reference"]),
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "developer"]), "content": TEXT | PARTS}
        ),
    ),
    max_size=4,
)
MESSAGES_FIELDS = sorted(
    {*MessagesBody.model_fields, *MessagesBody.unserved} - {"messages", "model"}
)
RESPONSES_FIELDS = sorted({*ResponsesBody.model_fields, "include", "background"} - {"model"})


def nothing_is_stored(response_id: str) -> StoredResponse:
    raise RequestError(Fault.UNKNOWN_RESPONSE, f"{response_id} is not here")


def is_answered(parse: Callable[[bytes], object], body: Any) -> None:
    """Parses, or refuses with an error that can be written in both dialects."""
    try:
        parse((body if isinstance(body, str) else json.dumps(body)).encode())
    except RequestError as error:
        for told in (error_body(error), anthropic.error_body(error)):
            assert len(json.dumps(told, ensure_ascii=False).encode()) < 2000


@FUZZING
@given(
    messages=TURNS,
    tools=st.lists(
        st.fixed_dictionaries({"name": NAMES}, optional={"input_schema": SCHEMAS, "type": JSON}),
        max_size=2,
    ),
    choice=st.fixed_dictionaries(
        {"type": st.sampled_from(["auto", "any", "tool", "none"]) | TEXT},
        optional={"name": NAMES},
    ),
    fields=st.dictionaries(st.sampled_from(MESSAGES_FIELDS), JSON, max_size=3),
)
def test_any_message(
    hermes: Model, messages: list[Any], tools: list[Any], choice: Any, fields: dict[str, Any]
) -> None:
    said = {"messages": messages, "tools": tools, "tool_choice": choice, "max_tokens": 5}

    def parse(content: bytes) -> None:
        parse_messages(content, hermes, MAX_MODEL_LEN, "r1", random.Random())

    is_answered(parse, said | fields)
    is_answered(lambda content: count_tokens(content, hermes), said | fields)


@FUZZING
@given(
    items=TEXT | ITEMS,
    tools=st.lists(
        st.fixed_dictionaries(
            {"type": st.just("function") | SCALARS, "name": NAMES},
            optional={"parameters": SCHEMAS, "strict": JSON, "description": TEXT},
        ),
        max_size=2,
    ),
    choice=st.sampled_from(["none", "auto", "required"]) | JSON,
    fields=st.dictionaries(st.sampled_from(RESPONSES_FIELDS), JSON, max_size=3),
    previous=st.none() | TEXT,
)
def test_any_response(
    hermes: Model, items: Any, tools: list[Any], choice: Any, fields: dict[str, Any], previous: Any
) -> None:
    def find(response_id: str) -> StoredResponse:
        if len(response_id) % 2:
            raise RequestError(Fault.UNKNOWN_RESPONSE, "it is not here")
        return StoredResponse({}, (ChatMessage("user", "hello"),))

    def parse(content: bytes) -> None:
        call = parse_response(content, hermes, MAX_MODEL_LEN, "r1", random.Random(), find)
        answer = ResponsesAnswer(call, hermes.tokenizer, lambda name, response: None)
        finish = Finish(FinishReason.STOP, None, 1, 1, 0)
        answer.collect([Piece(0, "hello", [1], None, finish)])
        assert json.loads(json.dumps(answer.whole(), ensure_ascii=False).encode())

    said = {"input": items, "tools": tools, "tool_choice": choice}
    is_answered(parse, said | {"previous_response_id": previous} | fields)


TOKEN_FIELDS = sorted(
    {
        *TokenizeBody.model_fields,
        *TokenizeChatBody.model_fields,
        *DetokenizeBody.model_fields,
    }
)


@FUZZING
@given(st.dictionaries(st.sampled_from(TOKEN_FIELDS), JSON | st.lists(st.integers()), max_size=3))
def test_any_tokens(hermes: Model, fields: dict[str, Any]) -> None:
    is_answered(lambda content: tokenize_body(content, hermes, None), fields)
    is_answered(lambda content: detokenize_body(content, hermes), fields)


@pytest.mark.parametrize(
    "said",
    [
        '"user": "\\ud800"',
        '"text": {"format": {"type": "json_schema", "name": "a", "description": "\\ud800"}}',
        '"tools": [{"type": "function", "name": "f", "parameters": {"x": 1e999}}]',
    ],
)
def test_what_could_not_be_repeated_is_refused(hermes: Model, said: str) -> None:
    body = f'{{"input": "x", {said}}}'.encode()
    with pytest.raises(RequestError, match=r"has a (lone surrogate|number that is too large)"):
        parse_response(body, hermes, MAX_MODEL_LEN, "r1", random.Random(), nothing_is_stored)


@pytest.mark.parametrize("depth", [100, 700, 990, 3000, 100_000])
def test_what_is_nested_is_answered_or_refused(hermes: Model, depth: int) -> None:
    """Also where it is JSON within a string of the body."""
    array, an_object = "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": an_object}

    def a_response(content: bytes) -> None:
        parse_response(content, hermes, MAX_MODEL_LEN, "r1", random.Random(), nothing_is_stored)

    def a_message(content: bytes) -> None:
        parse_messages(content, hermes, MAX_MODEL_LEN, "r1", random.Random())

    bodies = [
        json.dumps({"input": [call, {"role": "user", "content": "x"}]}),
        f'{{"input": "x", "tool_choice": {array}}}',
        f'{{"input": "x", "tools": [{{"type": "function", "name": "f", "x": {array}}}]}}',
        f'{{"messages": [{{"role": "user", "content": {array}}}], "max_tokens": 1}}',
    ]
    for body in bodies:
        for parse in (a_response, a_message):
            is_answered(parse, body)


def test_no_field_of_the_other_endpoints_is_ignored_in_a_response(hermes: Model) -> None:
    """Whatever chats and completions have is either served by a response or refused."""
    others = {*ChatBody.model_fields, *CompletionBody.model_fields}
    assert "max_tokens" in others - ResponsesBody.model_fields.keys()
    for name in others - ResponsesBody.model_fields.keys():
        body = json.dumps({"input": "x", name: 3}).encode()
        with pytest.raises(RequestError) as caught:
            parse_response(body, hermes, MAX_MODEL_LEN, "r1", random.Random(), nothing_is_stored)
        assert caught.value.fault in (Fault.UNKNOWN_FIELD, Fault.NOT_SUPPORTED)
        assert caught.value.field == name
