"""Responses that clients may ask for again, or go on from, by their id.

In memory, and bounded twice: what is older than its time is gone, and the oldest go when there are
too many bytes. Each router has its own, and a router that restarts has none.

A response is its owner's: the name of the key that asked for it, None where no key is asked for. To
others it is as if it was not there.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass

from gateway.errors import Fault, RequestError, quote
from gateway.openai.responses import StoredResponse


@dataclass(frozen=True, slots=True)
class _Entry:
    response: StoredResponse
    owner: str | None
    num_bytes: int
    ends_at: float


class ResponseStore:
    """Belongs to the event loop, but for `find`, which changes nothing."""

    def __init__(
        self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_bytes` 0 keeps nothing."""
        self.max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """The oldest first."""
        self.num_bytes = 0

    @property
    def keeps(self) -> bool:
        """Whether anything may be kept at all."""
        return self.max_bytes > 0

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, owner: str | None, response_id: str, response: StoredResponse) -> None:
        """From now on, unless it alone is too large."""
        now = self._clock()
        num_bytes = _num_bytes(response)
        while self._entries:
            oldest_id, oldest = next(iter(self._entries.items()))
            if oldest.ends_at > now and self.num_bytes + num_bytes <= self.max_bytes:
                break
            self._drop(oldest_id)
        if num_bytes <= self.max_bytes:
            self._entries[response_id] = _Entry(response, owner, num_bytes, now + self._ttl_s)
            self.num_bytes += num_bytes

    def find(self, owner: str | None, response_id: str) -> StoredResponse:
        """Raises RequestError if the owner has none of that id. May be called from any thread."""
        entry = self._entries.get(response_id)
        if entry is None or entry.owner != owner or entry.ends_at <= self._clock():
            raise RequestError(
                Fault.UNKNOWN_RESPONSE,
                f"response {quote(response_id)} is not here; {self._rule()}",
                field="response_id",
            )
        return entry.response

    def delete(self, owner: str | None, response_id: str) -> None:
        """Raises RequestError if the owner has none of that id."""
        self.find(owner, response_id)
        self._drop(response_id)

    def _rule(self) -> str:
        if not self.keeps:
            return "this server keeps none"
        return f"a response is kept for {self._ttl_s:g} s at most"

    def _drop(self, response_id: str) -> None:
        self.num_bytes -= self._entries.pop(response_id).num_bytes


def _num_bytes(response: StoredResponse) -> int:
    """As JSON: its body, its input, its conversation, which it may share with others, in full, and
    its events."""
    turns = [asdict(turn) for turn in response.turns]
    said = [response.body, response.input_items, turns]
    num_bytes = len(json.dumps(said, ensure_ascii=False).encode())
    return num_bytes + sum(map(len, response.events))
