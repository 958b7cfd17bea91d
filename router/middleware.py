"""What holds for every HTTP request: it has a name, and its sender may ask."""

import hashlib
import hmac
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import Fault, RequestError
from gateway.request import check_request_id
from router.responses import error_response

OPEN_PATHS = frozenset({"/health", "/ready"})
"""What probes ask: no key needed, and nothing but yes or no in the answers."""


class ApiKey:
    """Compares keys in constant time, by digest, so that not even the length shows."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def check(self, authorization: str | None, x_api_key: str | None = None) -> None:
        """Raises RequestError unless a header's value is the key: after "Bearer" in OpenAI's
        header, alone in Anthropic's, which counts where there is no other."""
        scheme, _, given = (authorization or f"bearer {x_api_key or ''}").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._digest):
            raise RequestError(
                Fault.UNAUTHENTICATED,
                "the API key is missing or wrong; "
                "send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'",
            )


class RequestIdMiddleware:
    """Names each request by its X-Request-Id, or by a new name, and says it in the response.

    The name is for people and logs; nothing of ours is found by it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(12)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = state["request_id"]
            await send(message)

        given = Headers(scope=scope).get("x-request-id")
        if given is not None:
            try:
                state["request_id"] = check_request_id("X-Request-Id", given)
            except RequestError as error:
                await error_response(error, scope)(scope, receive, send_named)
                return
        await self._app(scope, receive, send_named)


class AuthenticationMiddleware:
    """Lets nobody past without the key, but for `OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, api_key: ApiKey | None) -> None:
        self._app = app
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        is_open = scope["type"] != "http" or scope["path"] in OPEN_PATHS
        if self._api_key is not None and not is_open:
            try:
                headers = Headers(scope=scope)
                self._api_key.check(headers.get("authorization"), headers.get("x-api-key"))
            except RequestError as error:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)
