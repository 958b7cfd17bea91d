"""HTTP as far as `quire` itself needs it: GET, POST of JSON, and server-sent events, over TCP or a
unix socket. aiohttp does the work; here are our addresses and our errors.

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

if TYPE_CHECKING:  # aiohttp loads when something is asked: `quire --help` is quick without it
    import aiohttp


class Unreachable(RequestFailed):
    """Nobody answers at the address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and the key to it."""

    url: str
    api_key: str | None = None
    ca_certs: str | None = None
    """Whose certificates it may have, a file in PEM; None: the system's authorities."""

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises Unreachable."""
        async with self._request("GET", path, None) as response:
            return response.status, await response.read()

    async def post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer. Raises RequestFailed with the server's own message."""
        status, body = await self.try_post(path, payload)
        if status != 200:
            raise RequestFailed(_error_message(status, body))
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def try_post(self, path: str, payload: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body, whatever they are."""
        async with self._request("POST", path, payload) as response:
            return response.status, await response.read()

    async def events(
        self, path: str, payload: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The `data:` objects of an event stream until `[DONE]`; closing it ends the request.

        Raises RequestFailed if the server refuses, sends an error event, or stops half-way.
        """
        async with self._request("POST", path, payload) as response:
            if response.status != 200:
                raise RequestFailed(_error_message(response.status, await response.read()))
            if response.content_type != "text/event-stream":
                raise RequestFailed(
                    f"{self.url}{path} sent no event stream: it is {response.content_type}"
                )
            async for content in _event_data(response.content):
                if content == b"[DONE]":
                    return
                data = json.loads(content)
                if "error" in data:
                    raise RequestFailed(str(data["error"].get("message", data["error"])))
                yield data
        raise RequestFailed("the stream ended before its end was sent")

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> AsyncIterator["aiohttp.ClientResponse"]:
        """Sends a request; the response's head has arrived, its body is to be read."""
        import aiohttp

        base_url, connector = self._dial()
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else None
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=aiohttp.ClientTimeout(total=None)
                ) as session,
                session.request(method, base_url + path, json=payload, headers=headers) as response,
            ):
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "") or "it is not accepted"
            raise Unreachable(f"the certificate of {self.url}: {reason}") from error
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"nobody answers at {self.url}: {error.strerror}") from error
        except aiohttp.ClientError as error:
            raise Unreachable(f"the connection to {self.url} broke") from error

    def _dial(self) -> tuple[str, "aiohttp.BaseConnector"]:
        """What every URL begins with, and how to connect to it."""
        import aiohttp
        import yarl

        try:
            url = yarl.URL(self.url)
        except ValueError as error:
            raise ConfigurationError(f"url is {self.url!r}: {error}") from error
        if url.scheme == "http+unix":
            return "http://localhost", aiohttp.UnixConnector(url.path, force_close=True)
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(f"url is {self.url!r}; it must be like http://host:port")
        return self.url, aiohttp.TCPConnector(ssl=_trusted(self.ca_certs), force_close=True)


async def _event_data(content: "aiohttp.StreamReader") -> AsyncIterator[bytes]:
    """The data of server-sent events, as OpenAI's dialect has them: one line each, no names."""
    rest = b""
    async for received in content.iter_any():
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


@functools.cache
def _trusted(ca_certs: str | None) -> ssl.SSLContext:
    """These certificate authorities, read once: that takes milliseconds."""
    return ssl.create_default_context(cafile=ca_certs)


def _error_message(status: int, body: bytes) -> str:
    """What an OpenAI-shaped error says, or the start of whatever was sent."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return f"{json.loads(body)['error']['message']} (HTTP {status})"
    return f"HTTP {status}: {body[:200].decode(errors='replace')}"
