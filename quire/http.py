"""HTTP as far as `quire` itself needs it: GET, POST of JSON, and server-sent events, over TCP or a
unix socket. httpx does the work; here are our addresses and our errors.

Every request dials anew. The benchmark takes its times here, and so each of its requests costs the
same: none waits for a pool of connections, none meets one that the server has just given up, and a
proxy spreads all of them. The price, one handshake per request, is part of every time it shows.

An address is "http://host:port", "https://host[:port]" or "http+unix:///path/of.sock". It is
dialled as it stands: proxies of the environment are for other addresses.
"""

import contextlib
import functools
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quire.errors import ConfigurationError, RequestFailed

if TYPE_CHECKING:  # httpx loads when something is asked: `quire --help` is quick without it
    import httpx


class Unreachable(RequestFailed):
    """Nobody answers at the address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and the key to it."""

    url: str
    api_key: str | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises Unreachable."""
        async with self._request("GET", path, None) as response:
            return response.status_code, await response.aread()

    async def post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer. Raises RequestFailed with the server's own message."""
        async with self._request("POST", path, payload) as response:
            body = await response.aread()
        if response.status_code != 200:
            raise RequestFailed(_error_message(response.status_code, body))
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def events(
        self, path: str, payload: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The `data:` objects of an event stream until `[DONE]`; closing it ends the request.

        Raises RequestFailed if the server refuses, sends an error event, or stops half-way.
        """
        # Not httpx's own aiter_lines: it ends a line at U+2028 too, which JSON leaves as it is.
        from httpx_sse import EventSource, SSEError

        async with self._request("POST", path, payload) as response:
            if response.status_code != 200:
                body = await response.aread()
                raise RequestFailed(_error_message(response.status_code, body))
            try:
                async for event in EventSource(response).aiter_sse():
                    if event.data == "[DONE]":
                        return
                    data = json.loads(event.data)
                    if "error" in data:
                        raise RequestFailed(str(data["error"].get("message", data["error"])))
                    yield data
            except SSEError as error:
                raise RequestFailed(f"{self.url}{path} sent no event stream: {error}") from error
        raise RequestFailed("the stream ended before its end was sent")

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> AsyncIterator["httpx.Response"]:
        """Sends a request; the response's head has arrived, its body is to be read."""
        import httpx

        base_url, uds = self._address()
        headers = {"Connection": "close"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        transport = httpx.AsyncHTTPTransport(uds=uds, verify=_trusted())
        try:
            async with (
                httpx.AsyncClient(
                    base_url=base_url, transport=transport, timeout=None, trust_env=False
                ) as client,
                client.stream(method, path, json=payload, headers=headers) as response,
            ):
                yield response
        except httpx.ConnectError as error:
            raise Unreachable(f"nobody answers at {self.url}: {error}") from error
        except httpx.RequestError as error:
            raise Unreachable(f"the connection to {self.url} broke") from error

    def _address(self) -> tuple[str, str | None]:
        """The base of every URL, and the unix socket to dial instead of its host."""
        import httpx

        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"url is {self.url!r}: {error}") from error
        if url.scheme == "http+unix":
            return "http://localhost", url.path
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(f"url is {self.url!r}; it must be like http://host:port")
        return self.url, None


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The system's certificate authorities, read once: that takes milliseconds."""
    return ssl.create_default_context()


def _error_message(status: int, body: bytes) -> str:
    """What an OpenAI-shaped error says, or the start of whatever was sent."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return f"{json.loads(body)['error']['message']} (HTTP {status})"
    return f"HTTP {status}: {body[:200].decode(errors='replace')}"
