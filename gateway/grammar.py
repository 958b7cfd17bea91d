"""What an answer may look like: one language, however the client wrote it down.

`response_format`, `structured_outputs` and the older `guided_*` fields, and tools that must be
called, all become a `GrammarSpec`; the worker lets no token come that has no place in it.
"""

from dataclasses import dataclass
from enum import StrEnum


class GrammarKind(StrEnum):
    """How the text of a grammar is to be read."""

    JSON_SCHEMA = "json_schema"
    """The answer is JSON that the schema accepts."""
    REGEX = "regex"
    """The whole answer matches; Rust's syntax, without look-around and back-references."""
    LARK = "lark"
    """A context-free grammar in llguidance's Lark; its rule `start` is the whole answer."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """The language of a whole answer."""

    kind: GrammarKind
    text: str
