"""What is asked while faults happen: every feature whose state must survive them, mixed.

A replay has to restore what each of these keeps beside the tokens: random positions, penalty
counts, the place in a grammar, text held back for a stop string, a multi-token bad word half said,
siblings that share a prompt, logprobs of the prompt and of the output.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Json = dict[str, Any]

_WORDS = [
    *("river", "stone", "lamp", "harbour", "winter", "engine", "garden", "letter", "silver"),
    *("mountain", "paper", "thread", "window", "market", "cloud", "bridge", "copper", "island"),
]
_LIST = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 24},
        "scores": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 999},
            "minItems": 40,
            "maxItems": 60,
        },
        "notes": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 20},
    },
    "required": ["title", "scores", "notes"],
    "additionalProperties": False,
}
_SEEDED: Json = {"temperature": 0.8, "top_p": 0.95}
_GREEDY: Json = {"temperature": 0}
_SCHEMA: Json = {
    "type": "json_schema",
    "json_schema": {"name": "list", "schema": _LIST, "strict": True},
}


@dataclass(frozen=True)
class Asked:
    """One request."""

    kind: str
    path: str
    body: Json
    tenant: str = ""

    @property
    def is_greedy(self) -> bool:
        """Whether the best token always wins."""
        return not self.body["temperature"]

    def salted(self, salt: str) -> "Asked":
        """The same, apart from all others in the prefix cache."""
        return replace(self, body=self.body | {"cache_salt": salt})


@dataclass(frozen=True)
class _Kind:
    chat: bool
    fields: Json
    goes_on: bool = True
    """Past the model's end token, to its limit."""


KINDS: dict[str, _Kind] = {
    "greedy": _Kind(chat=False, fields=_GREEDY),
    "seeded": _Kind(chat=False, fields=_SEEDED | {"logprobs": 2}),
    "json_schema": _Kind(chat=True, fields=_SEEDED | {"response_format": _SCHEMA}, goes_on=False),
    "n=2": _Kind(chat=True, fields=_SEEDED | {"n": 2}),
    "penalties": _Kind(
        chat=False,
        fields=_GREEDY
        | {"frequency_penalty": 0.6, "presence_penalty": 0.3, "repetition_penalty": 1.1},
    ),
    "stop string": _Kind(chat=False, fields=_SEEDED),
    "n=2, stop": _Kind(chat=False, fields=_SEEDED | {"n": 2}),
    "rules": _Kind(
        chat=True,
        fields=_SEEDED
        | {"top_k": 50, "min_p": 0.02, "logit_bias": {"28": -2, "30": 3}}
        | {"bad_words": ["of the", "and", "in the"], "logprobs": True, "top_logprobs": 1},
    ),
    "echo": _Kind(chat=False, fields=_GREEDY | {"echo": True, "logprobs": 1}),
}
"""By name."""

STOPPING = ("stop string", "n=2, stop")


def mixed(count: int, max_tokens: int, seed: int = 0, model: str = "smollm2") -> list[Asked]:
    """As many streams, the kinds in turn; no two have the same prompt."""
    dice = random.Random(seed)
    return [
        _asked(dice, name, number, max_tokens, model)
        for number, name in zip(range(count), list(KINDS) * count, strict=False)
    ]


def _asked(dice: random.Random, name: str, number: int, max_tokens: int, model: str) -> Asked:
    kind = KINDS[name]
    words = " ".join(dice.choices(_WORDS, k=dice.choice((5, 20, 60, 120))))
    text = f"Number {number}. Tell a story with these words: {words}."
    body: Json = {
        "model": model,
        "max_tokens": max_tokens,
        "seed": 1000 * number,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "ignore_eos": kind.goes_on,
        **kind.fields,
    }
    if kind.chat:
        body["messages"] = [{"role": "user", "content": text}]
        return Asked(name, "/v1/chat/completions", body)
    return Asked(name, "/v1/completions", body | {"prompt": text})


def with_stops(asked: Sequence[Asked], text_of: Callable[[Asked], str]) -> list[Asked]:
    """The same, where those that wait for a stop string have one that comes late in their text, as
    `text_of` tells it; of two samples only the first is sure to have it."""
    return [
        replace(one, body=one.body | {"stop": _late_part(text_of(one))})
        if one.kind in STOPPING
        else one
        for one in asked
    ]


def _late_part(text: str) -> str:
    """Eight characters from four fifths of the way: several tokens, usually."""
    start = len(text) * 4 // 5
    return text[start : start + 8]


def plain(
    kind: str, model: str, prompts: Sequence[str | list[int]], max_tokens: int, salt: str
) -> list[Asked]:
    """Streams of exactly so many tokens, and nothing else asked of them."""
    body: Json = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0.8,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "cache_salt": salt,
    }
    return [
        Asked(kind, "/v1/completions", body | {"prompt": prompt, "seed": number})
        for number, prompt in enumerate(prompts)
    ]
