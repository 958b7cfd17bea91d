"""What holds for every HTTP request: its answer is counted, it has a name, its sender may ask, and
its connection is not kept longer than the server."""

import secrets
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import RequestError
from gateway.hosts import HostPolicy
from gateway.keys import ApiKeys
from gateway.request import check_request_id
from router.metrics import Metrics
from router.responses import error_response

OPEN_PATHS = frozenset({"/health", "/ready"})
"""What probes ask: no key needed, and nothing but yes or no in the answers. Who asks for more, with
a question mark behind the path, needs it."""

BROWSER_PATHS = frozenset({"/", "/docs", "/openapi.json"})
"""What people read in a browser, which can send a key only as the password of HTTP's Basic scheme,
under any name. It goes on sending it to every path, whichever page asks: so it counts nowhere
else, and a page of another origin can do nothing with it."""


_ASK_FOR_PASSWORD = 'Basic realm="Quire: the API key is the password", charset="UTF-8"'


class CountMiddleware:
    """Counts each answer as it begins; those of clients that left before are none."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[Route]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._paths = {route.endpoint: route.path_format for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        def count(status: int) -> None:
            nonlocal has_begun
            has_begun = True
            self._metrics.answered(self._handler(scope), scope["method"], status)

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        except Exception:
            if not has_begun:
                count(500)  # which is answered outside of all this
            raise

    def _handler(self, scope: Scope) -> str | None:
        """The path of the endpoint, as it is written; None if there is none. Who is refused before
        the endpoint is looked for has asked for it all the same."""
        if (endpoint := scope.get("endpoint")) is not None:
            return self._paths.get(endpoint)
        matching = (r.path_format for r in self._routes if r.matches(scope)[0] is not Match.NONE)
        return next(matching, None)


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


class FarewellMiddleware:
    """Asks clients to come back on another connection, from when this server is to end."""

    def __init__(self, app: ASGIApp, is_leaving: Callable[[], bool]) -> None:
        self._app = app
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_leaving():
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_last)


class HostMiddleware:
    """Answers to its own names alone while no key is asked for, probes as well."""

    def __init__(self, app: ASGIApp, hosts: HostPolicy, keys: ApiKeys) -> None:
        self._app = app
        self._hosts = hosts
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] == "http" and not self._keys:
            try:
                self._hosts.check(Headers(scope=scope).get("host"))
            except RequestError as error:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class AuthenticationMiddleware:
    """Lets nobody past without a key, but for `OPEN_PATHS`; the key's name is the request's
    `key_name`."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        is_open = scope["type"] != "http" or (
            scope["path"] in OPEN_PATHS and not scope["query_string"]
        )
        if self._keys and not is_open:
            is_browsers = scope["path"] in BROWSER_PATHS
            try:
                headers = Headers(scope=scope)
                said = headers.get("authorization")
                name = self._keys.name_of_password(said) if is_browsers else None
                if name is None:
                    name = self._keys.check(said, headers.get("x-api-key"))
                scope.setdefault("state", {})["key_name"] = name
            except RequestError as error:
                asks = {"www-authenticate": _ASK_FOR_PASSWORD} if is_browsers else {}
                await error_response(error, scope, asks)(scope, receive, send)
                return
        await self._app(scope, receive, send)
