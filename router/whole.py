"""Whole answers, written in pieces.

Whoever answers waits until the client has taken all but the last piece or so: what is held for a
client that does not read is held by somebody who counts, and ends with its connection (see
`router.http_protocol`). A client that is only slow takes each piece in time.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.errors import Fault, RequestError
from router.backend import Backend
from router.caller import http_caller

PIECE_BYTES = 64 * 1024
"""As much as a transport takes before it asks to wait."""


async def send_json(body: bytes, send: Send) -> None:
    """A response that went well. Returns when little of it is left to be taken, or the client has
    gone."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), PIECE_BYTES):
        piece = body[start : start + PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})  # waits until there is room again


class WholeResponse(JSONResponse):
    """JSON of any size."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        await send_json(bytes(self.body), send)


class ComputedResponse(Response):
    """What a thread makes of a body; everything happens when it is sent."""

    def __init__(self, backend: Backend, compute: Callable[[bytes], Any]) -> None:
        self._backend = backend
        self._compute = compute
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call. Raises RequestError."""
        try:
            tenant = http_caller(scope).tenant
            self._backend.permits.check(tenant)
            with ExitStack() as permit:
                answer = await self._answer(Request(scope, receive), tenant, permit)
                await send_json(answer, send)
        except RequestError as error:
            if error.fault is not Fault.CLIENT_GONE:
                raise

    async def _answer(self, request: Request, tenant: str, permit: ExitStack) -> bytes:
        backend = self._backend
        async with backend.body(request, tenant) as content:
            permit.enter_context(backend.permits.permit(tenant))
            found = await backend.in_thread(self._compute, content)
        return bytes(JSONResponse(found).body)
