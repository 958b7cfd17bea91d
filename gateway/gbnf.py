r"""A grammar in GBNF, as users of llama.cpp and vLLM write it, in Lark.

    root ::= "ab" item* | [^\n]      start: ("a" "b") r1_item* | /[^\x{a}]/
    item ::= ("," root)?             r1_item: ("," start)?

Choices, groups and repetitions are written alike. But what reads Lark cuts a text into terminals
first, each as long as it can be, and GBNF knows none: so a literal becomes its characters, one
terminal each, and every name that of a rule. (llguidance has a converter of its own, which makes
terminals of literals and of rules: of `"ab" | [a-z]+` it leaves out "abc".)
"""

import json
import re
from collections.abc import Iterator

from gateway.errors import quote

_RULE = re.compile(r"^[ \t]*[\w-]+\s*::=", re.ASCII | re.MULTILINE)
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+|\#[^\r\n]*)
    |(?P<head>[\w-]+)\s*::=
    |(?P<name>[\w-]+)
    |"(?P<literal>(?:[^"\\\r\n]|\\.)*)"
    |\[(?P<not>\^?)(?P<letters>(?:[^]\\\r\n]|\\.)+)\]
    |(?P<times>\{\s*[0-9]+\s*(?:,\s*[0-9]*\s*)?\}|[*+?])
    |(?P<mark>[|()])
    |(?P<any>\.)
    """,
    re.ASCII | re.VERBOSE,
)
_LETTER = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))|(\\?)(.)", re.DOTALL
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_ITSELF = frozenset("\"'\\/[]^-")
"""What a backslash may stand before and change nothing."""
_ROOT = "root"


def is_gbnf(text: str) -> bool:
    """Whether a grammar is written so: Lark has no `::=`."""
    return _RULE.search(text) is not None


def lark_of(text: str) -> str:
    """The same grammar in Lark. Raises ValueError that says what is wrong with it."""
    rules: dict[str, list[str]] = {}
    used: dict[str, None] = {}
    rule: list[str] = []
    for kind, said in _tokens(text):
        match kind:
            case "head":
                if said in rules:
                    raise ValueError(f"it has two rules {quote(said)}")
                rule = rules[said] = []
                continue
            case "name":
                used[said] = None
        if not rules:
            raise ValueError("it does not begin with a rule")
        rule.append(f"{kind} {said}")
    for name in (_ROOT, *used):
        if name not in rules:
            raise ValueError(f"it has no rule {quote(name)}")
    names = {name: _name(index, name) for index, name in enumerate(rules)}
    return "\n".join([f"{names[name]}: {_body(rules[name], names)}" for name in rules])


def _name(index: int, name: str) -> str:
    """Another for each: letters that are small, since others would name a terminal."""
    return "start" if name == _ROOT else f"r{index}_{name.lower().replace('-', '_')}"


def _body(tokens: list[str], names: dict[str, str]) -> str:
    written: list[str] = []
    is_open = True
    """Something must come: a choice of nothing is written as such."""
    for token in [*tokens, "mark "]:
        kind, _, said = token.partition(" ")
        if is_open and kind == "mark" and said != "(":
            written.append('""')
        is_open = kind == "mark" and said in ("|", "(")
        match kind:
            case "name":
                written.append(names[said])
            case "times" if written:
                written[-1] += said
            case _:
                written.append(said)
    return " ".join(written).rstrip()


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """What is in it: its kind, and how Lark writes it. Raises ValueError."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            line, start = text.count("\n", 0, at) + 1, text.rfind("\n", 0, at)
            seen = quote(text[at : at + 8])
            raise ValueError(f"{seen} at line {line}, column {at - start} cannot be read")
        at = found.end()
        match found.lastgroup:
            case "space":
                continue
            case "literal":
                letters = [_terminal(letter) for letter, _ in _letters(found["literal"])]
                yield "is", letters[0] if len(letters) == 1 else _sequence(letters)
            case "letters":
                yield "is", f"/[{found['not']}{_ranges(found['letters'])}]/"
            case "any":
                yield "is", "/(?s:.)/"
            case "times":
                yield "times", "".join(found["times"].split())
            case kind:
                assert kind is not None
                yield kind, found[kind]


def _letters(text: str) -> Iterator[tuple[str, bool]]:
    """The characters of a literal or of what stands between brackets; whether one stands there with
    a backslash. Raises ValueError."""
    for found in _LETTER.finditer(text):
        digits = found[1] or found[2] or found[3]
        if digits:
            code = int(digits, 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise ValueError(f"{found[0]} is no character")
            yield chr(code), True
        elif not found[4]:
            yield found[5], False
        elif found[5] in _ESCAPES or found[5] in _ITSELF:
            yield _ESCAPES.get(found[5], found[5]), True
        else:
            raise ValueError(f"{quote(found[0])} stands for no character")


def _terminal(letter: str) -> str:
    return '"\\u007f"' if letter == "\x7f" else json.dumps(letter, ensure_ascii=False)


def _sequence(terminals: list[str]) -> str:
    return f"({' '.join(terminals)})" if terminals else '""'


def _ranges(text: str) -> str:
    """What stands between brackets, with all characters as numbers, so that none means more."""
    letters = list(_letters(text))
    written: list[str] = []
    for index, (letter, is_escaped) in enumerate(letters):
        is_range = letter == "-" and not is_escaped and 0 < index < len(letters) - 1
        written.append("-" if is_range else f"\\x{{{ord(letter):x}}}")
    return "".join(written)
