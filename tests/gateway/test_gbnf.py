"""Grammars as users of llama.cpp and vLLM write them: the same language, read by our library."""

import json
import random
import re
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.gbnf import is_gbnf, lark_of
from gateway.grammar import GrammarKind, GrammarSpec, Reader, compiled
from gateway.model import Model
from gateway.openai.completions import parse_completion
from gateway.request import GenerateRequest
from tests.gateway.tiny_model import MAX_MODEL_LEN

JSON = r"""
# as llama.cpp has it
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
SQL = (
    'root ::= select " from " name\n'
    'select ::= "select " (name ", ")* name\n'
    'name ::= "fr" | "id" [a-z]*\n'
)


def accepts(grammar: str, text: str) -> bool:
    return Reader(compiled(GrammarSpec(GrammarKind.GBNF, grammar))).accepts(text)


@pytest.mark.parametrize(
    ("grammar", "same"),
    [
        # a grammar, and the regular expression of its language
        ('root ::= "a" | "b"', "a|b"),
        ('root::="a"|"b"', "a|b"),
        ('root ::= [a-z]+ "b"', "[a-z]+b"),
        ('root ::= word "b"\nword ::= [a-z]+', "[a-z]+b"),
        ('root ::= "ab" | word\nword ::= [a-c]+', "ab|[abc]+"),
        ('root ::= ("a" | "ab")* "b"', "(a|ab)*b"),
        ('root ::= "ab" "c" | "a" "bb"', "abc|abb"),
        ('root ::= "a" ( | "b")\n', "ab?"),
        ('root ::= | "a"', "a?"),
        ('root ::= "a"\n  | "b" # or\n  | "c"', "a|b|c"),
        ('root ::= ("ab"){1,2} "c"?', "(ab){1,2}c?"),
        ('root ::= "ab"{2}', "(ab){2}"),
        ('root ::= "ab" {1,} ', "(ab)+"),
        ('item-list ::= item*\nroot ::= item-list\nitem ::= "a" "b"', "(ab)*"),
        ('root ::= Item item\nItem ::= "a"\nitem ::= "b"\nstart ::= "c"', "ab"),
        ("root ::= [^a] .", "[^a](?s:.)"),
        ("root ::= [-a] [a-] [a\\-c]", "[-a][-a][-ac]"),
        (r'root ::= "\x61" [\u0062\U00000063] "\n"?', "a[bc]\n?"),
        ("root ::= [a&&b[]+", "[ab&[]+"),
        ('root ::= "a" root "b" | "c"', "c|acb"),
    ],
)
def test_it_is_the_same_language(grammar: str, same: str) -> None:
    reader = Reader(compiled(GrammarSpec(GrammarKind.GBNF, grammar)))
    texts = ["".join(letters) for length in range(5) for letters in product("abc-", repeat=length)]
    for text in [*texts, "\n", "b\n", "ab\n", "&", "a[", "é", "bé", "b\n"]:
        assert reader.accepts(text) == bool(re.fullmatch(same, text)), text


@pytest.mark.parametrize(
    "value", [{}, {"a": [1, -2.5e3, None, True, 'x"\\\n é\u4e00🙂']}, {"a": {"b": []}, "c": ""}]
)
def test_json_in_gbnf(value: Any) -> None:
    text = json.dumps(value)
    assert accepts(JSON, text)
    assert accepts(JSON, json.dumps(value, ensure_ascii=False, indent=1).replace("\x7f", ""))
    assert not accepts(JSON, text[:-1])
    assert not accepts(JSON, f"{text}x")


def test_words_that_begin_alike() -> None:
    assert accepts(SQL, "select idx, fr from ida")
    assert not accepts(SQL, "select idx,fr from ida")


def test_a_long_answer_is_not_too_much() -> None:
    value = [{"name": f"{'x' * 40} {index}", "values": [index] * 10} for index in range(30)]
    assert accepts(JSON, json.dumps({"rows": value}))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('item ::= "a"', 'it has no rule "root"'),
        ("root ::= item", 'it has no rule "item"'),
        ('root ::= "a"\nroot ::= "b"', 'it has two rules "root"'),
        ('"a"\nroot ::= "b"', "it does not begin with a rule"),
        ('root ::= "a" @', '"@" at line 1, column 14 cannot be read'),
        ('root ::= "a"\n | "b', '"\\"b" at line 2, column 4 cannot be read'),
        (r'root ::= "\q"', '"\\\\q" stands for no character'),
        (r'root ::= "\ud800"', r"\ud800 is no character"),
    ],
)
def test_what_is_wrong_is_said(model: Model, grammar: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        lark_of(grammar)
    assert refusal(model, grammar) == (
        'guided_grammar is not a grammar in GBNF (root ::= "a" | "b") that can be enforced: '
        f"{reason}"
    )


@pytest.mark.parametrize("grammar", ['root ::= ("a"', 'root ::= * "a"', "root ::= [c-a]"])
def test_what_only_the_library_sees_is_refused_too(model: Model, grammar: str) -> None:
    assert "is not a grammar in GBNF" in refusal(model, grammar)


def test_what_is_neither_is_told_of_both(model: Model) -> None:
    assert refusal(model, 'root = "a"').startswith(
        'guided_grammar is not a grammar in Lark (start: "a" | "b") or GBNF '
        '(root ::= "a" | "b") that can be enforced: '
    )


def parse(model: Model, **said: Any) -> GenerateRequest:
    content = json.dumps({"prompt": "a", **said}).encode()
    return parse_completion(content, model, MAX_MODEL_LEN, "r1", random.Random()).requests[0]


def refusal(model: Model, grammar: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse(model, guided_grammar=grammar)
    assert caught.value.field == "guided_grammar"
    return caught.value.message


@pytest.mark.parametrize(
    "said",
    [
        {"guided_grammar": 'root ::= "a" | "b"'},
        {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
        {"structured_outputs": {"grammar": 'start: "a" | "b"'}},
    ],
)
def test_either_form_binds_the_answer(model: Model, said: dict[str, Any]) -> None:
    grammar = parse(model, **said).sampling.grammar
    assert grammar
    reader = Reader(grammar)
    assert [reader.accepts(text) for text in ("a", "b", "c", "ab")] == [True, True, False, False]


@given(st.text(alphabet=' \n\\"[]{}()|*+?-^.:=#ar1,', max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    grammar = f"root ::= {text}"
    assert is_gbnf(grammar)
    with suppress(RequestError):  # and nothing else
        compiled(GrammarSpec(GrammarKind.GBNF, grammar))
