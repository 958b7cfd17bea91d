"""Calls written as in Python: f(a=1, b="x"), g()], with literal arguments.

Each call is read to its end before it is told of, since only then is it certain to be one. The
reading is our own and not `ast`'s: with bounded nesting nothing that a model writes can exhaust the
stack.
"""

import json
import math
import re
from collections.abc import Collection

from gateway.parsing.json_calls import checked_name
from gateway.parsing.reader import NotACall, Reader, Steps

MAX_DEPTH = 64
"""Brackets within brackets."""

_NAME = re.compile(r"[A-Za-z0-9_.-]")
_WORD = re.compile(r"\w")
_NUMBER = re.compile(r"[0-9.eE+-]")
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_NUMBER = 1024
_MAX_WORD = 128
_CONSTANTS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "/": "/",
    "\n": "",
}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9A-Fa-f]")
_IN_STRING = {quote: re.compile(rf"[{quote}\\]") for quote in "'\""}


def read_python_calls(reader: Reader, known: Collection[str]) -> Steps[None]:
    """Takes calls from after the bracket before the first to the one after the last.

    Raises NotACall, with what is not part of a call held.
    """
    while True:
        yield from reader.skip_space()
        name = checked_name((yield from reader.run_of(_NAME, _MAX_WORD)), known)
        yield from reader.expect("(")
        arguments = yield from _arguments(reader)
        reader.begin_call(name)
        reader.say_arguments(arguments)
        reader.hold()
        yield from reader.skip_space()
        if not (yield from reader.accept(",")):
            break
        yield from reader.skip_space()
        if (yield from reader.peek()) == "]":
            break
    yield from reader.expect("]")


def literal(text: str) -> str | None:
    """A literal as JSON, if the text is one."""
    reader = Reader()
    reader.add(text)
    reader.ended = True
    steps = _value(reader, 1)
    try:
        next(steps)
    except NotACall:
        return None
    except StopIteration as stop:
        value: str = stop.value
        return value if reader.is_at_end else None
    return None


def _arguments(reader: Reader) -> Steps[str]:
    """The keyword arguments, up to the closing parenthesis, as a JSON object."""
    members: dict[str, str] = {}
    while True:
        yield from reader.skip_space()
        if (yield from reader.accept(")")):
            break
        name = yield from reader.run_of(_WORD, _MAX_WORD)
        yield from reader.skip_space()
        yield from reader.expect("=")
        if not name or name in members:
            raise NotACall
        members[name] = yield from _value(reader, 1)
        yield from reader.skip_space()
        if not (yield from reader.accept(",")):
            yield from reader.expect(")")
            break
    return _object(list(members.items()))


def _object(members: list[tuple[str, str]]) -> str:
    inside = ", ".join([f"{_quoted(name)}: {value}" for name, value in members])
    return f"{{{inside}}}"


def _value(reader: Reader, depth: int) -> Steps[str]:
    """One literal, as JSON text."""
    if depth > MAX_DEPTH:
        raise NotACall
    yield from reader.skip_space()
    character = yield from reader.peek()
    match character:
        case "'" | '"':
            return _quoted((yield from _string(reader)))
        case "[" | "(":
            return (yield from _list(reader, depth))
        case "{":
            return (yield from _dict(reader, depth))
        case _ if character and character in "-+.0123456789":
            return _number((yield from reader.run_of(_NUMBER, _MAX_NUMBER)))
        case _:
            constant = _CONSTANTS.get((yield from reader.run_of(_WORD, _MAX_WORD)))
            if constant is None:
                raise NotACall
            return constant


def _list(reader: Reader, depth: int) -> Steps[str]:
    close = "]" if (yield from reader.take()) == "[" else ")"
    items: list[str] = []
    while True:
        yield from reader.skip_space()
        if (yield from reader.accept(close)):
            break
        items.append((yield from _value(reader, depth + 1)))
        yield from reader.skip_space()
        if not (yield from reader.accept(",")):
            yield from reader.expect(close)
            break
    return f"[{', '.join(items)}]"


def _dict(reader: Reader, depth: int) -> Steps[str]:
    yield from reader.take()
    members: list[tuple[str, str]] = []
    while True:
        yield from reader.skip_space()
        if (yield from reader.accept("}")):
            break
        if (yield from reader.peek()) not in ("'", '"'):
            raise NotACall
        name = yield from _string(reader)
        yield from reader.skip_space()
        yield from reader.expect(":")
        members.append((name, (yield from _value(reader, depth + 1))))
        yield from reader.skip_space()
        if not (yield from reader.accept(",")):
            yield from reader.expect("}")
            break
    return _object(members)


def _number(text: str) -> str:
    if _JSON_NUMBER.fullmatch(text):
        return text
    try:
        value = float(text)
    except ValueError as error:
        raise NotACall from error
    if not math.isfinite(value):
        raise NotACall
    return repr(value)


def _quoted(text: str) -> str:
    """As JSON; the halves of a surrogate pair become one character."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return json.dumps(whole, ensure_ascii=False)


def _string(reader: Reader) -> Steps[str]:
    quote = yield from reader.take()
    if (yield from reader.accept(quote * 2)):
        return (yield from _long_string(reader, quote))
    pieces: list[str] = []
    while True:
        end = yield from reader.through(_IN_STRING[quote], pieces.append)
        if not end:
            raise NotACall
        pieces[-1] = pieces[-1][:-1]
        if end == quote:
            return "".join(pieces)
        pieces.append((yield from _escape(reader)))


def _long_string(reader: Reader, quote: str) -> Steps[str]:
    """From after three quotes up to three more."""
    pieces: list[str] = []
    while True:
        end = yield from reader.through(_IN_STRING[quote], pieces.append)
        if not end:
            raise NotACall
        if end == "\\":
            pieces[-1] = pieces[-1][:-1]
            pieces.append((yield from _escape(reader)))
        elif (yield from reader.accept(quote * 2)):
            pieces[-1] = pieces[-1][:-1]
            return "".join(pieces)


def _escape(reader: Reader) -> Steps[str]:
    """What stands for the characters after a backslash; the backslash too if nothing does."""
    character = yield from reader.take()
    if character in _HEX_DIGITS:
        digits = ""
        while len(digits) < _HEX_DIGITS[character]:
            digit = yield from reader.take()
            if not _HEX.match(digit):
                raise NotACall
            digits += digit
        if int(digits, 16) > 0x10FFFF:
            raise NotACall
        return chr(int(digits, 16))
    return _ESCAPES.get(character, f"\\{character}")
