"""The HTTP routes.

POST /v1/chat/completions   POST /v1/completions
GET  /v1/models             GET  /v1/models/{name}
GET  /health    this process is alive
GET  /ready     a request would be answered: see router.readiness
GET  /version   GET /metrics
"""

import logging
import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway.errors import Fault, RequestError, quote
from gateway.openai.chat import ChatAnswer, parse_chat
from gateway.openai.completions import CompletionAnswer, parse_completion
from gateway.openai.models import model_body, models_body
from router.answers import GenerationResponse
from router.backend import Backend
from router.middleware import AuthenticationMiddleware, RequestIdMiddleware
from router.responses import error_response

_log = logging.getLogger(__name__)


def create_app(backend: Backend) -> Starlette:
    """The ASGI application."""
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Route("/v1/completions", _completions, methods=["POST"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{name:path}", _model, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
            Route("/ready", _ready, methods=["GET"]),
            Route("/version", _version, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
        ],
        middleware=[
            Middleware(RequestIdMiddleware),
            Middleware(AuthenticationMiddleware, api_key=backend.api_key),
        ],
        exception_handlers={
            RequestError: _on_request_error,
            HTTPException: _on_http_error,
            Exception: _on_crash,
        },
    )
    app.router.redirect_slashes = False
    app.state.backend = backend
    return app


async def _chat(request: Request) -> Response:
    return GenerationResponse(_backend(request), parse_chat, ChatAnswer, time.monotonic())


async def _completions(request: Request) -> Response:
    return GenerationResponse(
        _backend(request), parse_completion, CompletionAnswer, time.monotonic()
    )


async def _models(request: Request) -> Response:
    backend = _backend(request)
    length = backend.engine.cell.max_model_len
    return JSONResponse(models_body(backend.model, backend.started_at, length))


async def _model(request: Request) -> Response:
    backend = _backend(request)
    backend.model.check_name(request.path_params["name"])
    length = backend.engine.cell.max_model_len
    return JSONResponse(model_body(backend.model, backend.started_at, length))


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def _ready(request: Request) -> Response:
    reason = _backend(request).readiness.why_not()
    if reason is None:
        return JSONResponse({"status": "ready"})
    return error_response(RequestError(Fault.UNAVAILABLE, reason, retry_after_s=2))


async def _version(request: Request) -> Response:
    return JSONResponse({"version": _backend(request).version})


async def _metrics(request: Request) -> Response:
    content = _backend(request).metrics.exposition()
    return PlainTextResponse(content, media_type="text/plain; version=0.0.4; charset=utf-8")


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or not with that method."""
    assert isinstance(error, HTTPException)
    method, path = request.method, quote(request.url.path)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{method} is not allowed on {path}; it must be one of: {allowed}"
        return error_response(RequestError(Fault.WRONG_METHOD, message), {"allow": allowed})
    return error_response(
        RequestError(Fault.UNKNOWN_PATH, f"there is no {path} here; see /v1/models")
    )


async def _on_crash(request: Request, error: Exception) -> Response:
    """The traceback goes to the log; the client learns only that it was not its fault."""
    return error_response(RequestError(Fault.INTERNAL, "the server failed; see its log"))
