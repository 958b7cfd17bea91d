"""Calls written as JSON objects: {"name": "f", "arguments": {...}}.

The arguments are passed on as the model writes them, piece by piece, from the moment it is certain
which tool they are for. What is only nearly JSON there (a line break in a string, a comma too many)
is passed on too: arguments are the model's words, and clients parse them.
"""

import json
import re
from collections.abc import Callable, Collection

from gateway.parsing.reader import NotACall, Reader, Steps

MAX_NAME_CHARACTERS = 128

_NAME = re.compile(rf"[A-Za-z0-9_.:/-]{{1,{MAX_NAME_CHARACTERS}}}")
_NAME_CHARACTER = re.compile(r"[A-Za-z0-9_.:/-]")
_ARGUMENTS = ("arguments", "parameters")
_UNREAD = ("type", "id")
"""Members that some models write beside the two that matter."""
_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')


def read_call(reader: Reader, known: Collection[str] | None) -> Steps[None]:
    """Takes one object that is a call, from after its opening brace on; that is held.

    `known` are the tools there are; where it is given, other objects may stand here too, so only
    one that has a known name and arguments is a call. Raises NotACall; what comes after the
    arguments of a call that has begun is held then.
    """
    name: str | None = None
    early: str | None = None  # arguments that came before the name
    begun = False
    while True:
        yield from reader.skip_space()
        member = yield from _string(reader)
        yield from reader.skip_space()
        yield from reader.expect(":")
        yield from reader.skip_space()
        if member == "name" and name is None:
            name = checked_name((yield from _string(reader)), known)
        elif member in _ARGUMENTS and not begun and early is None:
            if name is not None and (yield from reader.peek()) == "{":
                reader.begin_call(name)
                begun = True
                if not (yield from read_object(reader, reader.say_arguments)):
                    return
                reader.hold()
            else:
                early = yield from _arguments(reader)
        elif member in _UNREAD:
            yield from _string(reader)
        else:
            raise NotACall
        yield from reader.skip_space()
        if not (yield from reader.accept(",")):
            break
    if begun:  # models forget the brace of the call itself
        yield from reader.accept("}")
        reader.commit()
        return
    yield from reader.expect("}")
    if name is None or (early is None and known is not None):
        raise NotACall
    reader.begin_call(name)
    reader.say_arguments("{}" if early is None else early)


def read_plain_call(reader: Reader, known: Collection[str]) -> Steps[None]:
    """The same for an object that is written plainly: a name, then the arguments."""
    yield from reader.skip_space()
    yield from reader.expect('"name"')
    yield from reader.skip_space()
    yield from reader.expect(":")
    yield from reader.skip_space()
    yield from reader.expect('"')
    name = yield from reader.run_of(_NAME_CHARACTER, MAX_NAME_CHARACTERS)
    checked_name(name, known)
    yield from reader.expect('"')
    yield from reader.skip_space()
    yield from reader.expect(",")
    yield from reader.skip_space()
    yield from reader.expect('"parameters"')
    yield from reader.skip_space()
    yield from reader.expect(":")
    yield from reader.skip_space()
    if (yield from reader.peek()) != "{":
        raise NotACall
    reader.begin_call(name)
    if (yield from read_object(reader, reader.say_arguments)):
        reader.hold()
        yield from reader.skip_space()
        yield from reader.accept("}")
        reader.commit()


def checked_name(name: str, known: Collection[str] | None) -> str:
    """The name itself. Raises NotACall if no tool could have it."""
    if not _NAME.fullmatch(name) or (known is not None and name not in known):
        raise NotACall
    return name


def read_object(reader: Reader, tell: Callable[[str], None]) -> Steps[bool]:
    """Takes a bracketed value and tells its text; whether it was complete."""
    depth = 0
    while True:
        match (yield from reader.through(_STRUCTURE, tell)):
            case "":
                return False
            case '"':
                if not (yield from _rest_of_string(reader, tell)):
                    return False
            case "{" | "[":
                depth += 1
            case _:
                depth -= 1
                if depth == 0:
                    return True


def _arguments(reader: Reader) -> Steps[str]:
    """Arguments whose tool is not known yet, or that are not an object as such."""
    pieces: list[str] = []
    match (yield from reader.peek()):
        case "{":
            if not (yield from read_object(reader, pieces.append)):
                raise NotACall
            return "".join(pieces)
        case '"':  # JSON in a JSON string
            text = (yield from _string(reader, limit=None)).strip()
            if not text.startswith("{"):
                raise NotACall
            return text
        case _:
            yield from reader.expect("null")
            return "{}"


def _string(reader: Reader, limit: int | None = MAX_NAME_CHARACTERS) -> Steps[str]:
    """A string's value. Raises NotACall if there is none, or a longer one."""
    yield from reader.expect('"')
    pieces: list[str] = []
    if not (yield from _rest_of_string(reader, pieces.append, limit)):
        raise NotACall
    try:
        text: str = json.loads(f'"{"".join(pieces)}', strict=False)
        text.encode()  # half a surrogate pair is no text
    except ValueError as error:
        raise NotACall from error
    return text


def _rest_of_string(
    reader: Reader, tell: Callable[[str], None], limit: int | None = None
) -> Steps[bool]:
    """Takes a string from after its opening quote on; whether it was closed."""
    length = 0

    def count(piece: str) -> None:
        nonlocal length
        length += len(piece)
        if limit is not None and length > limit:
            raise NotACall
        tell(piece)

    while True:
        match (yield from reader.through(_IN_STRING, count)):
            case "":
                return False
            case '"':
                return True
            case _:
                count((yield from reader.take()))
