"""What an answer may look like: one language, however the client wrote it down.

`response_format`, `structured_outputs` and the older `guided_*` fields, and tools that must be
called, all become a `GrammarSpec`; the worker lets no token come that has no place in it.

A grammar is compiled here once, only to know that it can be: over a vocabulary of 256 bytes, with
the limits that hold at the worker. It is refused if the library does not know a keyword, if it
costs too much, or if nothing is in it.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from gateway.errors import invalid, quote
from gateway.gbnf import lark_of
from gateway.limits import DEFAULT_LIMITS, MAX_SCHEMA_DEPTH, RequestLimits
from gateway.nesting import is_deeper
from protos.grammar import GRAMMAR_LIMITS, MAX_GRAMMAR_BYTES

_MAX_REASON = 300
_END = 256
_TOKEN = re.compile(r"<\[(\^?)([0-9]+)\]>")
_SOME_BEFORE = re.compile(r"<\[\^([0-9]+)\]>\{0,[0-9]+\} <\[\1\]>")
_SPECIAL = frozenset(r"\/[](){}|.?*+^$")
_OTHERS = re.compile(r"<\[\^[0-9]+\]>\*")
_JSON_OPTIONS: Mapping[str, Any] = {
    # A model that goes on indenting would never come to the point.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}",
    # A schema may bring options of its own: not those that let pass what it forbids.
    "lenient": False,
    "coerce_one_of": False,
}


class GrammarKind(StrEnum):
    """How the text of a grammar is to be read."""

    JSON_SCHEMA = "json_schema"
    """The answer is JSON that the schema accepts."""
    REGEX = "regex"
    """The whole answer matches; Rust's syntax, without look-around and back-references."""
    LARK = "lark"
    """A context-free grammar in llguidance's Lark; its rule `start` is the whole answer."""
    GBNF = "gbnf"
    """The same in llama.cpp's words; its rule `root` is the whole answer."""


_NAMES = {
    GrammarKind.JSON_SCHEMA: "JSON schema",
    GrammarKind.REGEX: "regular expression",
    GrammarKind.LARK: 'grammar in Lark (start: "a" | "b") or GBNF (root ::= "a" | "b")',
    GrammarKind.GBNF: 'grammar in GBNF (root ::= "a" | "b")',
}


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """The language of a whole answer."""

    kind: GrammarKind
    text: str
    field: str = "grammar"
    """Where the client said it."""
    has_tokens: bool = False
    """For LARK: what it writes as <[5]> is that token of the model's, and <[^5]> any other."""
    said: Mapping[str, Any] | Sequence[str] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )
    """The schema, or the texts that the answer is one of: what a client may not say too much of."""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], field: str) -> "GrammarSpec":
        """That of a schema. Raises RequestError if it is nested too deeply to be written."""
        if is_deeper(schema, MAX_SCHEMA_DEPTH):
            raise invalid(
                field,
                f"{field} is nested too deeply; no schema may be more than {MAX_SCHEMA_DEPTH} deep",
            )
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
        return cls(GrammarKind.JSON_SCHEMA, text, field, said=schema)

    @classmethod
    def choice(cls, texts: Sequence[str], field: str) -> "GrammarSpec":
        """One of some texts."""
        quoted = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        quoted = quoted.replace("\x7f", "\\u007f")  # which JSON may have as it is, and Lark may not
        return cls(GrammarKind.LARK, f"start: {quoted}", field, said=texts)


ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of `json_object`."""


def compiled(spec: GrammarSpec, limits: RequestLimits = DEFAULT_LIMITS) -> str:
    """The grammar in the form that the worker takes.

    Raises RequestError naming the field: it is too large, cannot be read, costs too much, or no
    answer is in it.
    """
    try:
        size = len(spec.text.encode())
    except UnicodeEncodeError as error:
        raise invalid(
            spec.field, f"{spec.field} has a lone surrogate; it must be Unicode"
        ) from error
    _check_size(spec, size, limits)
    source, reason = _compiled(spec.kind, spec.text, spec.has_tokens)
    if reason:
        is_ours = spec.kind is GrammarKind.LARK and (spec.has_tokens or spec.said is not None)
        name = "grammar" if is_ours else _NAMES[spec.kind]
        raise invalid(spec.field, f"{spec.field} is not a {name} that can be enforced: {reason}")
    if len(source.encode()) > MAX_GRAMMAR_BYTES:
        raise invalid(
            spec.field,
            f"{spec.field} has {len(source.encode())} bytes with what stands for its special "
            f"characters; it must have at most {MAX_GRAMMAR_BYTES}",
        )
    return source


def as_rule(spec: GrammarSpec, limits: RequestLimits) -> str:
    """What stands for this language in a rule of a larger grammar, in Lark.

    Raises RequestError if it cannot be enforced as it is.
    """
    compiled(spec, limits)
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            return json_rule(json.loads(spec.text))
        case GrammarKind.REGEX:
            inner = json.loads(_source(spec.kind, spec.text))["grammars"][0]["lark_grammar"]
            return f"%lark {{\n{inner}\n}}"
        case GrammarKind.LARK:
            return f"%lark {{\n{spec.text}\n}}"
        case GrammarKind.GBNF:
            return f"%lark {{\n{lark_of(spec.text)}\n}}"


def json_rule(schema: Mapping[str, Any]) -> str:
    """What stands for the JSON that a schema accepts in a rule of a grammar, in Lark."""
    return f"%json {json.dumps({**schema, 'x-guidance': dict(_JSON_OPTIONS)}, ensure_ascii=False)}"


def spelled(source: str, bytes_of: Sequence[bytes]) -> str:
    """The same language for who reads its text: in place of tokens what each of them shows, and
    however many tokens in place of some."""
    if not _TOKEN.search(source):
        return source

    def shown(number: str) -> str:
        return bytes_of[int(number)].decode("utf-8", "replace")

    ends = set(_SOME_BEFORE.findall(source))
    source = _SOME_BEFORE.sub(r"upto_\1", source)
    rules = [f"upto_{end}[lazy]: /(?s:.*){escaped(shown(end))}/" for end in ends]
    source, count = _OTHERS.subn("others", source)
    if count:
        rules.append("others: /(?s:.*)/")
    source = _TOKEN.sub(lambda found: json.dumps(shown(found[2])), source)
    return "\n".join([source, *rules])


def escaped(text: str) -> str:
    """What stands for a text in a regular expression, in Lark."""
    return "".join([f"\\{letter}" if letter in _SPECIAL else letter for letter in text])


def matcher_of(source: str) -> LLMatcher:
    """A reader of UTF-8 bytes in place of tokens; it may have failed already."""
    limits = LLParserLimits(**GRAMMAR_LIMITS, verbose_errors=False)
    return LLMatcher(_bytes_tokenizer(), source, log_level=0, limits=limits)


class Reader:
    """A text that grows, and whether it is of a language as far as it goes."""

    def __init__(self, source: str) -> None:
        """`source` is what `compiled` gave; if it has tokens, what `spelled` made of that."""
        self._matcher = _shared_matcher(source).deep_copy()

    def read(self, text: str) -> None:
        """The text goes on so."""
        self._matcher.consume_tokens(list(text.encode()))

    def accepts(self, text: str) -> bool:
        """Whether the text, if it went on so, would be complete."""
        matcher = self._matcher.deep_copy()
        return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


@lru_cache(maxsize=64)
def _shared_matcher(source: str) -> LLMatcher:
    return matcher_of(source)


@lru_cache(maxsize=64)
def _compiled(kind: GrammarKind, text: str, has_tokens: bool) -> tuple[str, str]:
    """The grammar as it travels, and why it cannot."""
    try:
        source = _source(kind, text)
        # the vocabulary it is tried on has a single token that is no byte: it stands for any
        tried = _source(kind, _TOKEN.sub(rf"<[\g<1>{_END}]>", text)) if has_tokens else source
    except ValueError as error:
        return "", _reason(str(error))
    matcher = _shared_matcher(tried).deep_copy()
    if not matcher.is_error():
        matcher.compute_bitmask()  # fails if nothing may come
    if matcher.is_error():
        return "", _reason(matcher.get_error())
    return source, ""


def _source(kind: GrammarKind, text: str) -> str:
    """Raises ValueError."""
    match kind:
        case GrammarKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(text, overrides=dict(_JSON_OPTIONS))  # type: ignore[arg-type]
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(text)
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(text)
        case GrammarKind.GBNF:
            return LLMatcher.grammar_from_lark(lark_of(text))


def _reason(error: str) -> str:
    """One line: the library draws where in the text it is."""
    lines = error.splitlines() or ["it cannot be read"]
    told = next((line for line in lines if line.startswith("error: ")), lines[0])
    told = told.removeprefix("error: ")
    if told.startswith("NoExtension"):
        told = "no answer is in it"
    return told[:_MAX_REASON]


class _Bytes:
    """A vocabulary of all bytes and an end, for `TokenizerWrapper`."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _bytes_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


def _check_size(spec: GrammarSpec, num_bytes: int, limits: RequestLimits) -> None:
    """Raises RequestError if that is more than a client may ask for."""
    field, said = spec.field, spec.said
    if num_bytes > limits.grammar_bytes:
        raise invalid(
            field, f"{field} has {num_bytes} bytes; it must have at most {limits.grammar_bytes}"
        )
    if isinstance(said, Mapping):
        _check_schema(said, field, limits)
    elif said is not None and not 1 <= len(said) <= limits.choice:
        raise invalid(field, f"{field} has {len(said)} entries; it must have 1 to {limits.choice}")


def _check_schema(schema: Mapping[str, Any], field: str, limits: RequestLimits) -> None:
    """Counts without recursion."""
    left: list[tuple[Any, int]] = [(schema, 1)]
    num_nodes = 0
    while left:
        node, depth = left.pop()
        num_nodes += 1
        if depth > limits.schema_depth:
            raise invalid(
                field,
                f"{field} is nested too deeply; it must be at most {limits.schema_depth} deep",
            )
        if num_nodes > limits.schema_values:
            raise invalid(
                field,
                f"{field} has more values in it than the {limits.schema_values} that it may have",
            )
        if isinstance(node, Mapping):
            left += [(child, depth + 1) for child in node.values()]
        elif isinstance(node, list):
            left += [(child, depth + 1) for child in node]


def checked_schema(value: object, field: str) -> GrammarSpec:
    """The language of a schema that a client sent, as an object or as its text.

    Raises RequestError.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise invalid(field, f"{field} is a string, but not JSON") from error
    if not isinstance(value, dict):
        raise invalid(field, f"{field} is {quote(value)}; it must be an object")
    return GrammarSpec.json_schema(value, field)
