"""How deeply a JSON value is nested: whoever walks through it by recursion wants to know before."""

from typing import Any


def is_deeper(value: Any, limit: int) -> bool:
    """Whether objects and arrays lie within each other more than `limit` deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return bool(level)
