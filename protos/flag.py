"""What a flag is: its name, its limits and what it says of a value beyond them.

    --threads is 0; it must be at least 1

Which flags there are stands in `protos.flags`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Word = TypeVar("Word", bound=str)

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}ib": 1 << 10 * power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
}


class FlagError(Exception):
    """A flag that cannot be; the message is one line that names it, its limit and its value."""


@dataclass(frozen=True, slots=True)
class Flag(Generic[T]):
    """One flag of a process."""

    name: str
    """In Python: max_num_seqs for --max-num-seqs."""
    says: str
    """What it decides, in a line for --help."""
    unit: str
    """Stands for its value in --help: TOKENS, SECONDS."""
    parse: Callable[[str], T]
    """The value out of its text; raises ValueError that says what it must be."""
    default: T
    """What holds without it; None: no one value."""
    otherwise: str = ""
    """What holds without it, in words, where there is no one value."""

    @property
    def option(self) -> str:
        """On a command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def shown_default(self) -> str:
        """What holds without it, for --help."""
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return self.otherwise if self.default is None else str(self.default)

    def checked(self, value: object, name: str | None = None) -> T:
        """The value as it shall be. Raises FlagError, which calls the flag by its option or by
        `name`."""
        text = str(value)
        try:
            return self.parse(text)
        except ValueError as error:
            shown = text if _is_number(text) else repr(text)
            raise FlagError(f"{name or self.option} is {shown}; it must be {error}") from None

    def typer(self, **more: Any) -> Any:
        """What typer takes for it; `more` stands above what is said here.

        The default is told in the help's own words: that of a parameter may be None, for "leave it
        to the process".
        """
        import typer

        chosen: dict[str, Any] = {
            "parser": self.checked,
            "help": rf"{self.says} \[default: {self.shown_default}]",
            "metavar": self.unit,
            "show_default": False,
        }
        return typer.Option(self.option, **(chosen | more))


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Parses a whole number within limits."""
    limits = f"at least {least}" if most is None else f"{least} to {most}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            raise ValueError(f"a whole number, {limits}")
        value = int(text)
        if value < least or (most is not None and value > most):
            raise ValueError(limits)
        return value

    return parse


def number(least: float, most: float | None = None) -> Callable[[str], float]:
    """Parses a finite number within limits."""
    limits = f"at least {least:g}" if most is None else f"{least:g} to {most:g}"

    def parse(text: str) -> float:
        if not _is_number(text):
            raise ValueError(f"a number, {limits}")
        value = float(text)
        if value < least or (most is not None and value > most):
            raise ValueError(limits)
        return value

    return parse


def one_of(*values: Word) -> Callable[[str], Word]:
    """Parses one of these words."""
    words: dict[str, Word] = {value: value for value in values}

    def parse(text: str) -> Word:
        if text not in words:
            raise ValueError(f"{', '.join(values[:-1])} or {values[-1]}")
        return words[text]

    return parse


def text(text: str) -> str:
    """Parses anything but nothing."""
    if not text.strip():
        raise ValueError("at least 1 character")
    return text


def readable_file(text: str) -> str:
    """Parses the path of a file."""
    try:
        Path(text).open("rb").close()
    except OSError as error:
        raise ValueError(f"a file that can be read: {error.strerror}") from None
    return text


def size(text: str) -> int:
    """Parses bytes: "2GiB", "512 MiB", "1.5GB" or "1073741824"."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _SIZE_UNITS:
        raise ValueError("a size like 2GiB or 512MiB")
    return int(float(found[1]) * _SIZE_UNITS[found[2]])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
