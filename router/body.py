"""Reading a request's body, with bounds on its size, on the time it takes, and on what all of them
hold together.

A body may be large and there may be many, but not both: what each has beyond its first `OWN_BYTES`
comes out of one room for all. So large bodies, however slow, keep no small one out.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message

from starlette.requests import ClientDisconnect, Request

from gateway.errors import Fault, RequestError, quote

BODY_S = 60.0
"""A body that is not here after so long is given up."""
FIRST_S = 5.0
LEAST_BYTES_PER_S = 4096
"""So is one that, from `FIRST_S` on, has come more slowly than this on the whole."""
DISCARD_FACTOR = 4
"""A body over the limit, or without room, is read on, and forgotten, up to so many limits: a client
that is still sending would not see the answer."""
OWN_BYTES = 64 * 1024
ROOM_BYTES = 128 * 1024 * 1024
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
"""UTF-8, and what is part of it."""


class BodyRoom:
    """Where bodies are until they have been parsed; all share one."""

    def __init__(self) -> None:
        self.num_held = 0
        """Bytes that are not anybody's own."""

    @contextmanager
    def place(self, max_bytes: int) -> Iterator["Place"]:
        """One body's, which may be so large."""
        place = Place(self, max_bytes)
        try:
            yield place
        finally:
            place.clear()


class Place:
    """What is held of one body."""

    def __init__(self, room: BodyRoom, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._room = room
        self._chunks: list[bytes] = []
        self._num_bytes = 0

    def add(self, chunk: bytes) -> None:
        """Raises RequestError, and holds nothing any more, if the room is full. Any one body of
        `max_bytes` has room."""
        self.count(len(chunk))
        self._chunks.append(chunk)

    def count(self, num_bytes: int) -> None:
        """The same for what is held elsewhere."""
        num_more = self._num_shared(self._num_bytes + num_bytes) - self._num_shared(self._num_bytes)
        limit = max(ROOM_BYTES, self.max_bytes)
        if num_more and self._room.num_held + num_more > limit:
            held = self._room.num_held
            self.clear()
            raise RequestError(
                Fault.OVERLOADED,
                f"the bodies that are here hold {held} bytes; this server takes at most "
                f"{limit} at a time; try again shortly",
                retry_after_s=1,
            )
        self._room.num_held += num_more
        self._num_bytes += num_bytes

    def clear(self) -> None:
        """Forgets it."""
        self._room.num_held -= self._num_shared(self._num_bytes)
        self._num_bytes = 0
        self._chunks.clear()

    def whole(self) -> bytes:
        """All of it."""
        self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    @staticmethod
    def _num_shared(num_bytes: int) -> int:
        return max(0, num_bytes - OWN_BYTES)


async def read_body(request: Request, place: Place) -> None:
    """Puts the whole body there. Raises RequestError if it is not said to be JSON, too large, too
    slow or never complete, or if there is no room for it."""
    _check_content_type(request)
    num_bytes, max_bytes = 0, place.max_bytes
    no_room: RequestError | None = None
    clock = asyncio.get_running_loop().time
    began_at = clock()
    try:
        async with asyncio.timeout(FIRST_S) as patience:
            async for chunk in request.stream():
                num_bytes += len(chunk)
                may_take_s = min(FIRST_S + num_bytes / LEAST_BYTES_PER_S, BODY_S)
                patience.reschedule(began_at + may_take_s)
                if num_bytes > max_bytes:
                    place.clear()
                    if num_bytes > DISCARD_FACTOR * max_bytes:
                        break
                elif no_room is None:
                    try:
                        place.add(chunk)
                    except RequestError as error:
                        no_room = error
    except TimeoutError as error:
        raise RequestError(
            Fault.BODY_TOO_SLOW,
            f"the body comes too slowly: {num_bytes} bytes in {clock() - began_at:.1f} seconds; "
            f"it may take {BODY_S:g}, and must bring {LEAST_BYTES_PER_S} bytes a second",
        ) from error
    except ClientDisconnect as error:
        raise RequestError(Fault.CLIENT_GONE, "the client left before its body ended") from error
    if num_bytes > max_bytes:
        raise RequestError(
            Fault.BODY_TOO_LARGE,
            f"the body has {'at least ' if num_bytes > DISCARD_FACTOR * max_bytes else ''}"
            f"{num_bytes} bytes; this server accepts at most {max_bytes}",
        )
    if no_room is not None:
        raise no_room


def _check_content_type(request: Request) -> None:
    """A page of another origin may send forms and plain text without asking, but no JSON."""
    said = request.headers.get("content-type")
    media_type = (said or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            Fault.WRONG_CONTENT_TYPE,
            f"Content-Type is {'missing' if said is None else quote(said)}; "
            "it must be application/json",
            field="Content-Type",
        )
    _check_charset(said or "")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError(
            Fault.WRONG_CONTENT_TYPE,
            f"Content-Encoding is {quote(encoding)}; bodies must not be compressed",
            field="Content-Encoding",
        )


def _check_charset(content_type: str) -> None:
    """JSON is UTF-8, and who says another charset may well have written it."""
    if ";" not in content_type:
        return
    header = Message()
    header["content-type"] = content_type
    charset = header.get_content_charset("utf-8")
    if charset not in _CHARSETS:
        raise RequestError(
            Fault.WRONG_CONTENT_TYPE,
            f"Content-Type has the charset {quote(charset)}; JSON must be in UTF-8",
            field="Content-Type",
        )
