"""Prompts of completions and inputs of embeddings: a text or its tokens, or several of either."""

from typing import Any

from gateway.body import checked_text
from gateway.errors import invalid, wrong

Input = str | list[int]


def texts_or_tokens(field: str, value: Any, most: int) -> list[Input]:
    """One input or several, at most so many; texts are Unicode, tokens integers. Raises
    RequestError."""
    if isinstance(value, str):
        return [checked_text(field, value)]
    if isinstance(value, list) and value:
        if all(map(_is_token, value)):
            return [value]
        if len(value) > most and not _is_token(value[0]):
            raise invalid(field, f"{field} has {len(value)} entries; it must have at most {most}")
        if all(isinstance(each, str) for each in value):
            return [checked_text(f"{field}[{index}]", each) for index, each in enumerate(value)]
        if all(isinstance(each, list) and all(map(_is_token, each)) for each in value):
            return value
    expected = "a string, an array of strings, an array of tokens or an array of arrays of tokens"
    raise wrong(field, value, expected)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
