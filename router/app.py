"""The HTTP application: the routes of `router.routes`, what holds for all of them, and errors."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route

from gateway.cors import CorsPolicy
from gateway.errors import Fault, RequestError, one_of, quote
from gateway.hosts import ANY_HOST, HostPolicy
from router.backend import Backend
from router.documents import Documents
from router.middleware import (
    AuthenticationMiddleware,
    CountMiddleware,
    HostMiddleware,
    RequestIdMiddleware,
)
from router.responses import error_response
from router.routes import ENDPOINTS


def create_app(
    backend: Backend, cors: CorsPolicy | None = None, hosts: HostPolicy = ANY_HOST
) -> Starlette:
    """The ASGI application; `cors` says which other origins' pages may ask, and None: none."""
    routes = [Route("/", _to_docs), *(endpoint.route for endpoint in ENDPOINTS)]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(CountMiddleware, metrics=backend.metrics, routes=routes),
            Middleware(RequestIdMiddleware),
            Middleware(HostMiddleware, hosts=hosts, keys=backend.keys),
            # Before the key is asked for: a browser's preflight has none.
            *([Middleware(CORSMiddleware, **cors.arguments())] if cors else []),
            Middleware(AuthenticationMiddleware, keys=backend.keys),
        ],
        exception_handlers={
            RequestError: _on_request_error,
            HTTPException: _on_http_error,
            Exception: _on_crash,
        },
    )
    app.router.redirect_slashes = False
    app.state.backend = backend
    app.state.documents = Documents(ENDPOINTS, backend)
    return app


async def _to_docs(request: Request) -> Response:
    """Who opens the address in a browser wants to know what there is."""
    return RedirectResponse("/docs")


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error, request.scope)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or not with that method."""
    assert isinstance(error, HTTPException)
    method, path = request.method, quote(request.url.path)
    if error.status_code == 405:
        allowed = _allowed(request)
        if method == "OPTIONS":
            return Response(status_code=204, headers={"allow": f"{allowed}, OPTIONS"})
        methods = one_of(allowed.split(", "))
        message = f"{method} is not allowed on {path}; it must be {methods}"
        wrong = RequestError(Fault.WRONG_METHOD, message)
        return error_response(wrong, request.scope, {"allow": allowed})
    near = request.url.path.rstrip("/")
    hint = f"did you mean {quote(near)}?" if near and _allowed(request, near) else "see /docs"
    unknown = RequestError(Fault.UNKNOWN_PATH, f"there is no {path} here; {hint}")
    return error_response(unknown, request.scope)


def _allowed(request: Request, path: str | None = None) -> str:
    """The methods of a path, the request's own or another, over all of its endpoints."""
    scope = request.scope if path is None else {**request.scope, "path": path}
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            methods |= route.methods
    return ", ".join(sorted(methods))


async def _on_crash(request: Request, error: Exception) -> Response:
    """The traceback goes to the log; the client learns only that it was not its fault."""
    failed = RequestError(Fault.INTERNAL, "the server failed; see its log")
    return error_response(failed, request.scope)
