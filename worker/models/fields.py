"""Reading config.json field by field; what is missing or malformed is named in the error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_INT = 1 << 24
"""Of any number in a configuration: beyond it, it is a mistake, and its tables fit nowhere."""


class UnsupportedModelError(ValueError):
    """The model directory asks for something Quire does not compute; the message names it."""


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are read by type.

    Every reader raises `UnsupportedModelError` where the field is malformed, or missing without a
    default. An explicit null counts as missing, except in the `optional_` readers, where it is an
    answer.

    Attributes:
        raw: the object.
    """

    raw: Mapping[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.raw

    def positive_int(self, name: str, default: int | None = None, most: int = MAX_INT) -> int:
        """A whole number of at least 1."""
        value = self._present(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UnsupportedModelError(f"{name} is {value!r}; it must be a positive integer")
        if value > most:
            raise UnsupportedModelError(f"{name} is {value}; it must be at most {most}")
        return value

    def whole_number(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 0."""
        value = self._present(name, default)
        return 0 if value == 0 and not isinstance(value, bool) else self.positive_int(name, default)

    def positive_float(self, name: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._present(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise UnsupportedModelError(f"{name} is {value!r}; it must be a positive number")
        return float(value)

    def optional_positive_int(self, name: str, default: int | None) -> int | None:
        """A whole number of at least 1; null says none."""
        if self.raw.get(name, default) is None:
            return None
        return self.positive_int(name, default)

    def optional_positive_float(self, name: str, default: float | None) -> float | None:
        """A number above 0; null says none."""
        if self.raw.get(name, default) is None:
            return None
        return self.positive_float(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._present(name, default)
        if not isinstance(value, bool):
            raise UnsupportedModelError(f"{name} is {value!r}; it must be true or false")
        return value

    def words(self, name: str, known: Sequence[str], count: int) -> tuple[str, ...]:
        """So many words, each a known one."""
        values = self._present(name, None)
        if not isinstance(values, list) or len(values) != count:
            raise UnsupportedModelError(f"{name} is {values!r}; it must be a list of {count}")
        unknown = [value for value in values if value not in known]
        if unknown:
            raise UnsupportedModelError(f"{name} has {unknown[0]!r}; known: {', '.join(known)}")
        return tuple(values)

    def nested(self, *names: str) -> "Fields":
        """The object under the first of these names that has one; empty where none has."""
        for name in names:
            value = self.raw.get(name)
            if value and not isinstance(value, Mapping):
                raise UnsupportedModelError(f"{name} is {value!r}; it must be an object")
            if value:
                return Fields(value)
        return Fields({})

    def refuse(self, name: str, reason: str) -> None:
        """Raises where the field is there and neither null nor false."""
        value = self.raw.get(name)
        if value is not None and value is not False:
            raise UnsupportedModelError(f"{name} is set; {reason}")

    def _present(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise UnsupportedModelError(f"{name} is missing")
        return value
