"""API keys: where they come from, and whose a request's is.

Every key has a name. The name stands in logs and metrics, and is the tenant that its requests are
counted for; the key itself stands nowhere. Keys of one name are alike in all of that: while clients
turn from one to the next, both open.
"""

import base64
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gateway.errors import Fault, RequestError
from protos.flag import FlagError

KEY_VARIABLE = "QUIRE_API_KEY"
KEYS_VARIABLE = "QUIRE_API_KEYS"
MAX_KEYS = 1000
"""Names are labels of metrics, and every key is compared with what a request brings."""
FIRST_NAME = "default"
"""Of a key that comes without; those after it are default-2, default-3."""

Keys: TypeAlias = Mapping[str, tuple[str, ...]]
"""By name, which one or several have; no key has two."""

_NAME = re.compile(r"[A-Za-z0-9._@:/-]{1,64}")
_KEY = re.compile(r"[!-~]*")
"""What every client can send in a header."""
_MAX_KEY_LEN = 1024


class ApiKeys:
    """The keys that open a server; without any it is open."""

    def __init__(self, keys: Keys) -> None:
        self._digests: list[tuple[str, bytes]] = []
        self.replace(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def replace(self, keys: Keys) -> None:
        """From now on, these."""
        self._digests = [(name, _digest(key)) for name in keys for key in keys[name]]

    def check(self, authorization: str | None, x_api_key: str | None = None) -> str | None:
        """The name of the key that one of these headers brings: after "Bearer" in OpenAI's, alone
        in Anthropic's, which counts where there is no other. None if no key is asked for.

        Raises RequestError.
        """
        if not self:
            return None
        scheme, _, given = (authorization or f"bearer {x_api_key or ''}").partition(" ")
        name = self._name_of(given.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise RequestError(
                Fault.UNAUTHENTICATED,
                "the API key is missing or wrong; "
                "send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'",
            )
        return name

    def name_of_password(self, authorization: str | None) -> str | None:
        """The same for a header that says a key as the password of HTTP's Basic scheme; None if it
        does not."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            _, colon, password = base64.b64decode(given.strip(), validate=True).partition(b":")
            return self._name_of(password.decode()) if colon else None
        except ValueError:
            return None

    def _name_of(self, given: str) -> str | None:
        """Compares all of them, by digest: neither which one it is shows in the time, nor any
        key's length."""
        digest, found = _digest(given), None
        for name, known in self._digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def read_keys(
    given: Sequence[str] | None,
    path: str | None,
    environment: Mapping[str, str] = os.environ,
) -> Keys:
    """All keys, by name: of --api-key (else QUIRE_API_KEY), of --api-key-file, of QUIRE_API_KEYS.

    Raises FlagError, which never shows a key.
    """
    keys: dict[str, tuple[str, ...]] = {}
    name_of: dict[str, str] = {}
    for source, name, key in _said(given, path, environment):
        if not _NAME.fullmatch(name):
            raise FlagError(
                f"{source}: the name {name[:80]!r} of a key must be 1 to 64 letters, digits or any "
                "of ._@:/-"
            )
        if not 1 <= len(key) <= _MAX_KEY_LEN:
            raise FlagError(
                f"{source}: the key {name} has {len(key)} characters; it must have 1 to "
                f"{_MAX_KEY_LEN}"
            )
        if not _KEY.fullmatch(key):
            raise FlagError(
                f"{source}: the key {name} holds a space or what is not printable ASCII, which "
                "clients cannot send in a header"
            )
        if key in name_of:
            other = "is there already" if name_of[key] == name else "is another one's, too"
            raise FlagError(f"{source}: the key {name} {other}")
        name_of[key] = name
        keys[name] = (*keys.get(name, ()), key)
        if len(name_of) > MAX_KEYS:
            raise FlagError(f"{source}: there are more than {MAX_KEYS} keys")
    return keys


def _said(
    given: Sequence[str] | None, path: str | None, environment: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Where each comes from, its name, and itself."""
    if given is None:
        yield from _of_key_variable(environment.get(KEY_VARIABLE, ""))
    for index, key in enumerate(given or ()):
        if key == "":
            raise FlagError("--api-key is ''; it must be at least 1 character, or left out")
        yield "--api-key", FIRST_NAME + (f"-{index + 1}" if index else ""), key
    if path is not None:
        yield from _of_file(path)
    if text := environment.get(KEYS_VARIABLE):
        yield from _of_variable(text)


def _of_key_variable(text: str) -> Iterator[tuple[str, str, str]]:
    """Without the end of line that files of secrets have."""
    if not text:
        return
    if not text.strip():
        raise FlagError(f"{KEY_VARIABLE} holds nothing but white space; unset it for no key")
    yield KEY_VARIABLE, FIRST_NAME, text.strip()


def _of_file(path: str) -> Iterator[tuple[str, str, str]]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FlagError(
            f"--api-key-file is {path!r}; it must be a file that can be read: {reason}"
        ) from error
    num_keys = 0
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            found = "1 word" if len(words) == 1 else f"{len(words)} words"
            raise FlagError(
                f"--api-key-file is {path!r}; line {number} has {found}; it must have a name and a "
                "key"
            )
        num_keys += 1
        yield f"{path} line {number}", words[0], words[1]
    if not num_keys:
        raise FlagError(f"--api-key-file is {path!r}; it holds no key")


def _of_variable(text: str) -> Iterator[tuple[str, str, str]]:
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    keys = said.items() if isinstance(said, dict) else [("", None)]
    of_name: list[tuple[str, Any]] = [
        (name, [some] if isinstance(some, str) else some) for name, some in keys
    ]
    if not all(_are_texts(some) for _, some in of_name):
        raise FlagError(
            f'{KEYS_VARIABLE} must be a JSON object, like {{"name": "key"}} or '
            '{"name": ["new key", "old key"]}'
        )
    yield from ((KEYS_VARIABLE, name, key) for name, some in of_name for key in some)


def _are_texts(some: object) -> bool:
    return isinstance(some, list) and bool(some) and all(isinstance(key, str) for key in some)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
