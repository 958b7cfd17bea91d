"""HTTP as far as `quire` itself needs it: GET, POST of JSON, and server-sent events, over TCP or a
unix socket.

One connection per request, and nothing between the socket and the line that was sent: the
benchmark takes its times here, so a client that costs as much as the server would show itself.

An address is "http://host:port", "https://host[:port]" or "http+unix:///path/of.sock".
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from quire.errors import ConfigurationError, RequestFailed

LINE_LIMIT_BYTES = 1 << 24


class Unreachable(RequestFailed):
    """Nobody answers at the address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and the key to it."""

    url: str
    api_key: str | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises Unreachable."""
        async with self._request("GET", path, None) as (status, response):
            return status, b"".join([chunk async for chunk in _body(response)])

    async def post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer. Raises RequestFailed with the server's own message."""
        async with self._request("POST", path, payload) as (status, response):
            body = b"".join([chunk async for chunk in _body(response)])
        if status != 200:
            raise RequestFailed(_error_message(status, body))
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def events(
        self, path: str, payload: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The `data:` objects of an event stream until `[DONE]`; closing it ends the request.

        Raises RequestFailed if the server refuses, sends an error event, or stops half-way.
        """
        async with self._request("POST", path, payload) as (status, response):
            if status != 200:
                body = b"".join([chunk async for chunk in _body(response)])
                raise RequestFailed(_error_message(status, body))
            rest = b""
            async for chunk in _body(response):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: [DONE]"):
                        return
                    if line.startswith(b"data:"):
                        event = json.loads(line[5:])
                        if "error" in event:
                            raise RequestFailed(str(event["error"].get("message", event["error"])))
                        yield event
        raise RequestFailed("the stream ended before its end was sent")

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> AsyncIterator[tuple[int, "_Response"]]:
        """Sends a request; gives the status, and the response to read the body from."""
        reader, writer, host = await self._connect()
        try:
            body = b"" if payload is None else json.dumps(payload).encode()
            head = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
            if payload is not None:
                head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
            if self.api_key:
                head.append(f"Authorization: Bearer {self.api_key}")
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            await writer.drain()
            status = int((await reader.readline()).split(b" ", 2)[1])
            headers = {}
            while (line := (await reader.readline()).strip()) != b"":
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            yield status, _Response(reader, headers)
        except (ConnectionError, asyncio.IncompleteReadError, IndexError) as error:
            raise Unreachable(f"the connection to {self.url} broke") from error
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        parts = urlsplit(self.url)
        try:
            if parts.scheme == "http+unix":
                streams = await asyncio.open_unix_connection(parts.path, limit=LINE_LIMIT_BYTES)
                return *streams, "localhost"
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigurationError(f"url is {self.url!r}; it must be like http://host:port")
            tls = ssl.create_default_context() if parts.scheme == "https" else None
            port = parts.port or (443 if tls else 80)
            streams = await asyncio.open_connection(
                parts.hostname, port, ssl=tls, limit=LINE_LIMIT_BYTES
            )
            return *streams, parts.netloc.rpartition("@")[2]
        except OSError as error:
            raise Unreachable(f"nobody answers at {self.url}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Response:
    reader: asyncio.StreamReader
    headers: dict[str, str]


async def _body(response: _Response) -> AsyncIterator[bytes]:
    """The body as it arrives, whichever way its end is marked."""
    reader, headers = response.reader, response.headers
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while chunk := await reader.read(1 << 16):
            yield chunk


def _error_message(status: int, body: bytes) -> str:
    """What an OpenAI-shaped error says, or the start of whatever was sent."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return f"{json.loads(body)['error']['message']} (HTTP {status})"
    return f"HTTP {status}: {body[:200].decode(errors='replace')}"
