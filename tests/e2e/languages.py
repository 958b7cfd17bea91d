"""JSON schemas and regular expressions to hold answers to: random ones and hard ones.

Whoever judges the answers is not who made the masks: `jsonschema` and Python's `re`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import jsonschema
from hypothesis import strategies as st

Schema = dict[str, Any]


@dataclass(frozen=True)
class Language:
    """What an answer must be.

    Attributes:
        fields: how a request says so.
    """

    fields: dict[str, Any]

    @classmethod
    def of_schema(cls, schema: Schema) -> "Language":
        """As OpenAI's clients say it."""
        named = {"name": "answer", "schema": schema, "strict": True}
        return cls({"response_format": {"type": "json_schema", "json_schema": named}})

    @classmethod
    def of_regex(cls, pattern: str) -> "Language":
        """As vLLM's clients say it."""
        return cls({"structured_outputs": {"regex": pattern}})

    def check(self, text: str) -> None:
        """Raises AssertionError or a ValidationError unless the text is in it."""
        pattern = self.fields.get("structured_outputs", {}).get("regex")
        if pattern is not None:
            assert re.fullmatch(pattern, text), f"{text!r} does not match {pattern!r}"
            return
        schema = self.fields["response_format"]["json_schema"]["schema"]
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


HARD: dict[str, Language] = {
    "nested references": Language.of_schema(
        {
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {
                        "value": {"$ref": "#/$defs/value"},
                        "children": {
                            "type": "array",
                            "items": {"$ref": "#/$defs/tree"},
                            "maxItems": 2,
                        },
                    },
                    "required": ["value", "children"],
                    "additionalProperties": False,
                },
                "value": {"anyOf": [{"$ref": "#/$defs/word"}, {"type": "null"}]},
                "word": {"type": "string", "maxLength": 8},
            },
            "$ref": "#/$defs/tree",
        }
    ),
    "enum": Language.of_schema({"enum": ["red", "dark red", 7, 7.5, None, True, ["x"], {"a": 1}]}),
    "long enum": Language.of_schema({"enum": [f"number {i} of many" for i in range(700)]}),
    "unicode": Language.of_schema(
        {
            "type": "object",
            "properties": {
                "名前": {"enum": ["東京", "naïve", "🙂👩‍👩‍👧", 'a "quoted" \\ one\n', "\u0000"]},
                "ключ": {"const": "Straße"},
            },
            "required": ["名前", "ключ"],
            "additionalProperties": False,
        }
    ),
    "items at least": Language.of_schema(
        {"type": "array", "items": {"type": "boolean"}, "minItems": 7, "maxItems": 9}
    ),
    "tuple": Language.of_schema(
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 4}],
            "items": False,
            "minItems": 2,
        }
    ),
    "any of": Language.of_schema(
        {
            "anyOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 3},
                {"const": "neither"},
            ]
        }
    ),
    "one of": Language.of_schema(
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": kind}, "size": {"type": "integer"}},
                    "required": ["kind", "size"],
                    "additionalProperties": False,
                }
                for kind in ("cat", "dog")
            ]
        }
    ),
    "all of": Language.of_schema(
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 11}, {"multipleOf": 2}]}
    ),
    "patterns and formats": Language.of_schema(
        {
            "type": "object",
            "properties": {
                "day": {"type": "string", "pattern": "^[0-9]{4}-[01][0-9]-[0-3][0-9]$"},
                "id": {"type": "string", "format": "uuid"},
                "code": {"type": "string", "pattern": "x[a-f]+", "maxLength": 9},
            },
            "required": ["day", "id", "code"],
            "additionalProperties": False,
        }
    ),
    "numbers between": Language.of_schema(
        {
            "type": "object",
            "properties": {
                "n": {"type": "integer", "exclusiveMinimum": -5, "maximum": 1234},
                "x": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 0.75},
            },
            "required": ["n", "x"],
            "additionalProperties": False,
        }
    ),
    "properties of any name": Language.of_schema(
        {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
            "minProperties": 1,
            "maxProperties": 3,
        }
    ),
    "names by pattern": Language.of_schema(
        {
            "type": "object",
            "patternProperties": {"^n_[a-z]{1,3}$": {"type": "null"}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 2,
        }
    ),
    "length in characters": Language.of_schema({"type": "string", "minLength": 3, "maxLength": 5}),
    "a date by regex": Language.of_regex(r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])"),
    "an address by regex": Language.of_regex(r"[a-z]{1,10}(\.[a-z]{1,10})?@[a-z]{1,9}\.(com|org)"),
    "backtracking elsewhere": Language.of_regex(r"((a|b)+c){1,3}d"),
    "unicode by regex": Language.of_regex("[あ-ん]{1,6}(東京|🙂)"),
    "lines by regex": Language.of_regex("(- [a-z ]{1,12}\n){1,3}"),
}

_NAMES = st.text("abcdefghij_é東", min_size=1, max_size=6)
_WORDS = st.text('abc xyz-ß東🙂"\\\n', min_size=0, max_size=10)


def _leaf() -> st.SearchStrategy[Schema]:
    limits = st.tuples(st.integers(-50, 50), st.integers(0, 400))
    return st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        limits.map(lambda p: {"type": "integer", "minimum": p[0], "maximum": p[0] + p[1]}),
        st.tuples(st.integers(0, 3), st.integers(3, 12)).map(
            lambda p: {"type": "string", "minLength": p[0], "maxLength": p[1]}
        ),
        st.lists(st.one_of(_WORDS, st.integers(-9, 99)), min_size=1, max_size=6).map(
            lambda values: {"enum": values}
        ),
        _WORDS.map(lambda value: {"const": value}),
        _patterns().map(lambda pattern: {"type": "string", "pattern": f"^({pattern})$"}),
    )


def _objects(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    @st.composite
    def build(draw: st.DrawFn) -> Schema:
        properties = draw(st.dictionaries(_NAMES, children, min_size=1, max_size=4))
        required = [name for name in properties if draw(st.booleans())]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    return build()


def _containers(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.one_of(
        _objects(children),
        st.tuples(children, st.integers(0, 2), st.integers(0, 2)).map(
            lambda p: {"type": "array", "items": p[0], "minItems": p[1], "maxItems": p[1] + p[2]}
        ),
        st.lists(children, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    )


def _patterns() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "xy", "[a-z]", "[0-9]", "[A-F0-9]", "[^a-z0-9 \n]", "東", "-"])

    def grow(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.lists(parts, min_size=1, max_size=3).map("".join),
            st.lists(parts, min_size=2, max_size=3).map(lambda p: f"({'|'.join(p)})"),
            st.tuples(parts, st.sampled_from(["?", "{1,3}", "{2}"])).map(
                lambda p: f"({p[0]}){p[1]}"
            ),
        )

    return st.recursive(atoms, grow, max_leaves=5)


languages: st.SearchStrategy[Language] = st.one_of(
    st.recursive(_leaf(), _containers, max_leaves=8).map(Language.of_schema),
    _objects(_leaf()).map(Language.of_schema),
    _patterns().map(Language.of_regex),
)
"""Those of small answers, so that they end."""


def parameters() -> st.SearchStrategy[Schema]:
    """What a function's arguments must be."""
    return _objects(st.recursive(_leaf(), _containers, max_leaves=5))
