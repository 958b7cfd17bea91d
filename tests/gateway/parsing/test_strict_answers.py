"""Whatever a strict function's grammar lets through, its calls are what the schema says."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from gateway.conversation import Tool
from gateway.grammar import compiled, matcher_of
from gateway.limits import DEFAULT_LIMITS
from gateway.parsing.call_grammars import answer_grammar
from gateway.parsing.call_rules import why_not
from gateway.parsing.deltas import Said
from gateway.parsing.formats import CALL_FORMATS, THOUGHTS, Thoughts
from gateway.parsing.parser import AnswerParser
from tests.e2e.languages import parameters
from tests.gateway.parsing.test_call_grammars import some_answer
from tests.gateway.parsing.whole import read_whole

OPENINGS = {
    "hermes": ["<tool_call>", '<tool_call>\n{"name": "f", "arguments": '],
    "llama3_json": ['{"name": "f"', ' \n{ "name":"f"', '<|python_tag|>{"name": "f"'],
    "mistral": ["[TOOL_CALLS]", '[TOOL_CALLS][{"name": "f"'],
    "pythonic": ["[f(", "<|python_start|>[ f("],
    "qwen3_coder": ["<tool_call>\n<function=f>\n"],  # chance alone would not close any text
}
WORDS = ["", " ", "\n" * 70, "Well, ", "</think>", "<tool_call", "é🙂", '{"name": "Alice"}', "[f]"]
FAR = ["<think>{call}</think>", "<think>hm</think>\n", "\n<think></think>"]


def read(form: str, tools: dict[str, Any], text: str, thoughts: Thoughts | None) -> Said:
    parser = AnswerParser(
        calls=CALL_FORMATS[form],
        tools=tools,
        thoughts=thoughts,
        exact=True,
        at_start=not CALL_FORMATS[form].opening,
    )
    return read_whole(parser, text)


@pytest.mark.parametrize("form", CALL_FORMATS)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(parameters(), st.data())
def test_calls_of_strict_functions_are_right(
    form: str, schema: dict[str, Any], data: st.DataObject
) -> None:
    strict, loose = Tool("f", None, schema), Tool("loose", None, schema)
    assume(why_not(CALL_FORMATS[form], strict, no_token, DEFAULT_LIMITS) is None)
    thoughts = data.draw(st.sampled_from([None, *THOUGHTS.values()]))
    spec = answer_grammar(
        content=None,
        form=CALL_FORMATS[form],
        tools=[strict, loose],
        several=data.draw(st.booleans()),
        thoughts=thoughts,
        starts_thinking=False,
        token=no_token,
        held=[strict],
    )
    before = "".join(data.draw(st.lists(st.sampled_from(WORDS), max_size=3)))
    if thoughts is not None and data.draw(st.booleans()):
        far = data.draw(st.sampled_from(FAR)).replace("{call}", OPENINGS[form][0])
        before = far.replace("<think>", thoughts.begin).replace("</think>", thoughts.end) + before
    begin = before + data.draw(st.sampled_from(OPENINGS[form]))
    assume(
        matcher_of(compiled(spec)).try_consume_tokens(list(begin.encode())) == len(begin.encode())
    )
    text = some_answer(spec, begin, random.Random(data.draw(st.integers())))
    said = read(form, {"f": schema, "loose": schema}, text, thoughts)
    for call in said.calls:
        arguments = json.loads(call.arguments)
        if call.name == "f":
            jsonschema.validate(arguments, schema, jsonschema.Draft202012Validator)


def no_token(text: str) -> int | None:
    return None
