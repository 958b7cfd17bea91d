"""What holds for every HTTP request: it has a name, and its sender may ask."""

import base64
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

BROWSER_PATHS = frozenset({"/docs", "/openapi.json"})
"""What people read in a browser, which can send a key only as the password of HTTP's Basic scheme,
under any name. It goes on sending it to every path, whichever page asks: so it counts nowhere
else, and a page of another origin can do nothing with it."""


_ASK_FOR_PASSWORD = 'Basic realm="Quire: the API key is the password", charset="UTF-8"'


class ApiKey:
    """Compares keys in constant time, by digest, so that not even the length shows."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def check(self, authorization: str | None, x_api_key: str | None = None) -> None:
        """Raises RequestError unless a header's value is the key: after "Bearer" in OpenAI's
        header, alone in Anthropic's, which counts where there is no other."""
        scheme, _, given = (authorization or f"bearer {x_api_key or ''}").partition(" ")
        if scheme.lower() != "bearer" or not self._is(given.strip()):
            raise RequestError(
                Fault.UNAUTHENTICATED,
                "the API key is missing or wrong; "
                "send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'",
            )

    def is_password(self, authorization: str | None) -> bool:
        """Whether a header says the key as the password of HTTP's Basic scheme."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            _, colon, password = base64.b64decode(given.strip(), validate=True).partition(b":")
            return bool(colon) and self._is(password.decode())
        except ValueError:
            return False

    def _is(self, given: str) -> bool:
        digest = hashlib.sha256(given.encode()).digest()
        return hmac.compare_digest(digest, self._digest)


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
            is_browsers = scope["path"] in BROWSER_PATHS
            try:
                headers = Headers(scope=scope)
                said = headers.get("authorization")
                if not (is_browsers and self._api_key.is_password(said)):
                    self._api_key.check(said, headers.get("x-api-key"))
            except RequestError as error:
                asks = {"www-authenticate": _ASK_FOR_PASSWORD} if is_browsers else {}
                await error_response(error, scope, asks)(scope, receive, send)
                return
        await self._app(scope, receive, send)
