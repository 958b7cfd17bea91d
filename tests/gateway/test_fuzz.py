"""No JSON whatever gets anything but an answer or a refusal."""

import json
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.model import Model
from gateway.openai.chat import parse_chat
from gateway.openai.completions import parse_completion
from gateway.openai.errors import error_body
from gateway.openai.schema import ChatBody, CompletionBody
from tests.fuzz.messages import FUZZING
from tests.gateway.tiny_model import MAX_MODEL_LEN

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
"""Lone surrogates too: JSON can write them."""
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant"]) | SCALARS, "content": JSON},
        optional={"name": JSON, "tool_calls": JSON},
    ),
    max_size=3,
)
CHAT_FIELDS = sorted({*ChatBody.model_fields, *ChatBody.unserved} - {"messages", "model"})
COMPLETION_FIELDS = sorted({*CompletionBody.model_fields, *CompletionBody.unserved} - {"model"})


def is_answered(parse: Any, body: dict[str, Any], model: Model) -> None:
    """Parses, or refuses with an error that can be written."""
    try:
        parse(json.dumps(body).encode(), model, MAX_MODEL_LEN, "r1", random.Random())
    except RequestError as error:
        written = json.dumps(error_body(error), ensure_ascii=False).encode()
        assert len(written) < 2000


@FUZZING
@given(
    messages=MESSAGES,
    fields=st.dictionaries(st.sampled_from(CHAT_FIELDS) | TEXT, JSON, max_size=3),
)
def test_any_chat(model: Model, messages: list[Any], fields: dict[str, Any]) -> None:
    is_answered(parse_chat, {"messages": messages, **fields}, model)


@FUZZING
@given(st.dictionaries(st.sampled_from(COMPLETION_FIELDS), JSON, max_size=4), JSON)
def test_any_completion(model: Model, fields: dict[str, Any], prompt: Any) -> None:
    is_answered(parse_completion, {"prompt": prompt, **fields}, model)


TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function") | SCALARS,
            "function": st.fixed_dictionaries(
                {"name": st.sampled_from(["f", "g"]) | TEXT},
                optional={
                    "description": TEXT | JSON,
                    "parameters": st.dictionaries(
                        st.sampled_from(["type", "properties", "required", "$defs", "anyOf"]),
                        st.just("object") | JSON,
                        max_size=3,
                    )
                    | JSON,
                    "strict": JSON,
                },
            )
            | JSON,
        }
    ),
    max_size=3,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": TEXT | st.none()},
        optional={
            "tool_call_id": TEXT,
            "reasoning": TEXT,
            "tool_calls": st.lists(
                st.fixed_dictionaries(
                    {
                        "id": TEXT,
                        "function": st.fixed_dictionaries(
                            {"name": TEXT, "arguments": TEXT | JSON.map(json.dumps)}
                        ),
                    }
                ),
                max_size=2,
            ),
        },
    ),
    min_size=1,
    max_size=3,
)


@FUZZING
@given(
    messages=TURNS,
    tools=TOOLS,
    choice=st.sampled_from(["none", "auto", "required"])
    | st.just({"type": "function", "function": {"name": "f"}})
    | JSON,
    fields=st.dictionaries(
        st.sampled_from(
            ["chat_template_kwargs", "continue_final_message", "add_generation_prompt"]
        ),
        st.booleans() | st.dictionaries(TEXT, JSON, max_size=2),
        max_size=2,
    ),
)
def test_any_tools(
    hermes: Model, messages: list[Any], tools: list[Any], choice: Any, fields: dict[str, Any]
) -> None:
    body = {"messages": messages, "tools": tools, "tool_choice": choice, **fields}
    is_answered(parse_chat, body, hermes)
