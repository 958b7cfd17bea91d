"""What answers each route; which there are stands in `router.routes`."""

import time

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from gateway.anthropic import models as anthropic_models
from gateway.anthropic.messages import MessagesAnswer, count_tokens, parse_messages
from gateway.errors import Fault, RequestError
from gateway.openai.chat import ChatAnswer, parse_chat
from gateway.openai.completions import CompletionAnswer, parse_completion
from gateway.openai.models import model_body, models_body
from gateway.openai.tokens import detokenize, tokenize
from router import response_routes
from router.answers import GenerationResponse
from router.backend import Backend
from router.documents import Documents
from router.embeddings import EmbeddingsResponse
from router.responses import error_response, is_for_anthropics
from router.whole import ComputedResponse


async def answer_chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    return GenerationResponse(_backend(request), parse_chat, ChatAnswer, time.monotonic())


async def answer_completion(request: Request) -> Response:
    """POST /v1/completions."""
    return GenerationResponse(
        _backend(request), parse_completion, CompletionAnswer, time.monotonic()
    )


async def answer_embeddings(request: Request) -> Response:
    """POST /v1/embeddings."""
    return EmbeddingsResponse(_backend(request), time.monotonic())


async def answer_messages(request: Request) -> Response:
    """POST /v1/messages."""
    return GenerationResponse(_backend(request), parse_messages, MessagesAnswer, time.monotonic())


async def count_message_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens."""
    backend = _backend(request)
    return ComputedResponse(backend, lambda content: count_tokens(content, backend.model))


async def tokenize_prompt(request: Request) -> Response:
    """POST /tokenize."""
    backend = _backend(request)
    length = backend.engine.cell.max_model_len
    return ComputedResponse(backend, lambda content: tokenize(content, backend.model, length))


async def detokenize_tokens(request: Request) -> Response:
    """POST /detokenize."""
    backend = _backend(request)
    return ComputedResponse(backend, lambda content: detokenize(content, backend.model))


async def list_models(request: Request) -> Response:
    """GET /v1/models."""
    backend = _backend(request)
    said = (backend.model, backend.started_at, backend.engine.cell.max_model_len)
    if not is_for_anthropics(request.scope):
        return JSONResponse(models_body(*said))
    is_past = any(request.query_params.get(name) for name in ("after_id", "before_id"))
    return JSONResponse(anthropic_models.models_body(*said, is_past=is_past))


async def describe_model(request: Request) -> Response:
    """GET /v1/models/{name}."""
    backend = _backend(request)
    backend.model.check_name(request.path_params["name"])
    body = anthropic_models.model_body if is_for_anthropics(request.scope) else model_body
    length = backend.engine.cell.max_model_len
    return JSONResponse(body(backend.model, backend.started_at, length))


async def say_alive(request: Request) -> Response:
    """GET /health."""
    return JSONResponse({"status": "alive"})


async def say_ready(request: Request) -> Response:
    """GET /ready."""
    readiness = _backend(request).readiness
    is_verbose = response_routes.flag_of(response_routes.query_of(request, ("verbose",)), "verbose")
    reason = readiness.why_not()
    details = {"details": readiness.details()} if is_verbose else {}
    if reason is None:
        return JSONResponse({"status": "ready", **details})
    error = RequestError(Fault.UNAVAILABLE, reason, retry_after_s=2)
    return error_response(error, request.scope, beside=details)


async def say_load(request: Request) -> Response:
    """GET /load."""
    return JSONResponse({"server_load": _backend(request).permits.num_taken})


async def say_version(request: Request) -> Response:
    """GET /version."""
    return JSONResponse({"version": _backend(request).version})


async def expose_metrics(request: Request) -> Response:
    """GET /metrics."""
    backend = _backend(request)
    if backend.shared_port is not None and request.scope["server"][1] == backend.shared_port:
        message = "several processes answer here; each tells its metrics on a port of its own"
        raise RequestError(Fault.UNKNOWN_PATH, message)
    content = backend.metrics.exposition()
    return PlainTextResponse(content, media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi_document(request: Request) -> Response:
    """GET /openapi.json."""
    documents: Documents = request.app.state.documents
    return Response(await documents.openapi(), media_type="application/json")


async def docs_page(request: Request) -> Response:
    """GET /docs."""
    documents: Documents = request.app.state.documents
    return HTMLResponse(await documents.page())


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend
