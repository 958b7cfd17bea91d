"""The HTTP routes.

POST /v1/chat/completions   POST /v1/completions   POST /v1/embeddings
POST /v1/responses          GET, DELETE /v1/responses/{id}
GET  /v1/responses/{id}/input_items   POST /v1/responses/{id}/cancel
POST /v1/messages           POST /v1/messages/count_tokens
POST /tokenize              POST /detokenize
GET  /v1/models             GET  /v1/models/{name}
GET  /health    this process is alive
GET  /ready     a request would be answered: see router.readiness
GET  /load      requests that this process is answering
GET  /version   GET /metrics
GET  /openapi.json   GET /docs   what is written in `ENDPOINTS` below, for programs and people
"""

import time
from collections.abc import Callable
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from gateway.anthropic import answers as anthropic
from gateway.anthropic import models as anthropic_models
from gateway.anthropic.messages import MessagesAnswer, count_tokens, parse_messages
from gateway.anthropic.schema import CountTokensBody, MessagesBody
from gateway.errors import Fault, RequestError
from gateway.openai import answers, response_shapes
from gateway.openai.chat import ChatAnswer, parse_chat
from gateway.openai.completions import CompletionAnswer, parse_completion
from gateway.openai.embeddings import EmbeddingBody
from gateway.openai.models import model_body, models_body
from gateway.openai.responses import ResponsesBody
from gateway.openai.schema import ChatBody, CompletionBody
from gateway.openai.tokens import (
    DetokenizeBody,
    TokenizeBody,
    TokenizeChatBody,
    detokenize,
    tokenize,
)
from router import response_routes, shapes
from router.answers import GenerationResponse
from router.backend import Backend
from router.documents import Documents
from router.embeddings import EmbeddingsResponse
from router.endpoints import Endpoint, Parameter
from router.responses import error_response, is_for_anthropics


async def _chat(request: Request) -> Response:
    return GenerationResponse(_backend(request), parse_chat, ChatAnswer, time.monotonic())


async def _completions(request: Request) -> Response:
    return GenerationResponse(
        _backend(request), parse_completion, CompletionAnswer, time.monotonic()
    )


async def _embeddings(request: Request) -> Response:
    return EmbeddingsResponse(_backend(request), time.monotonic())


async def _messages(request: Request) -> Response:
    return GenerationResponse(_backend(request), parse_messages, MessagesAnswer, time.monotonic())


async def _count_tokens(request: Request) -> Response:
    backend = _backend(request)
    return await _computed(request, lambda content: count_tokens(content, backend.model))


async def _tokenize(request: Request) -> Response:
    backend = _backend(request)
    length = backend.engine.cell.max_model_len
    return await _computed(request, lambda content: tokenize(content, backend.model, length))


async def _detokenize(request: Request) -> Response:
    backend = _backend(request)
    return await _computed(request, lambda content: detokenize(content, backend.model))


class _ModelName(Convertor[str]):
    """Has slashes within, as names on the Hub have, but ends in none: no path here does."""

    regex = ".*[^/]"

    def convert(self, value: str) -> str:
        """See starlette."""
        return value

    def to_string(self, value: str) -> str:
        """See starlette."""
        return value


register_url_convertor("model", _ModelName())


async def _models(request: Request) -> Response:
    backend = _backend(request)
    said = (backend.model, backend.started_at, backend.engine.cell.max_model_len)
    if not is_for_anthropics(request.scope):
        return JSONResponse(models_body(*said))
    is_past = any(request.query_params.get(name) for name in ("after_id", "before_id"))
    return JSONResponse(anthropic_models.models_body(*said, is_past=is_past))


async def _model(request: Request) -> Response:
    backend = _backend(request)
    backend.model.check_name(request.path_params["name"])
    body = anthropic_models.model_body if is_for_anthropics(request.scope) else model_body
    length = backend.engine.cell.max_model_len
    return JSONResponse(body(backend.model, backend.started_at, length))


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def _ready(request: Request) -> Response:
    readiness = _backend(request).readiness
    is_verbose = response_routes.flag_of(response_routes.query_of(request, ("verbose",)), "verbose")
    reason = readiness.why_not()
    details = {"details": readiness.details()} if is_verbose else {}
    if reason is None:
        return JSONResponse({"status": "ready", **details})
    error = RequestError(Fault.UNAVAILABLE, reason, retry_after_s=2)
    return error_response(error, request.scope, beside=details)


async def _load(request: Request) -> Response:
    return JSONResponse({"server_load": _backend(request).permits.num_taken})


async def _version(request: Request) -> Response:
    return JSONResponse({"version": _backend(request).version})


async def _metrics(request: Request) -> Response:
    backend = _backend(request)
    if backend.shared_port is not None and request.scope["server"][1] == backend.shared_port:
        message = "several processes answer here; each tells its metrics on a port of its own"
        raise RequestError(Fault.UNKNOWN_PATH, message)
    content = backend.metrics.exposition()
    return PlainTextResponse(content, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _openapi(request: Request) -> Response:
    documents: Documents = request.app.state.documents
    return Response(await documents.openapi(), media_type="application/json")


async def _docs(request: Request) -> Response:
    documents: Documents = request.app.state.documents
    return HTMLResponse(await documents.page())


async def _computed(request: Request, answer: Callable[[bytes], Any]) -> Response:
    """What `answer` makes of the body, in a thread. Raises RequestError."""
    backend = _backend(request)
    backend.permits.check()
    content = await backend.read_body(request)
    with backend.permits.permit():
        return JSONResponse(await backend.in_thread(answer, content))


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handler=_chat,
        summary="Answer a conversation.",
        body=(ChatBody,),
        answer="Answers, or chunks of them, as OpenAI has them.",
        shape=answers.ChatCompletion,
        event=answers.ChatCompletionChunk,
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        handler=_completions,
        summary="Continue a text, or several.",
        body=(CompletionBody,),
        answer="Texts, or chunks of them, as OpenAI has them.",
        shape=answers.Completion,
        event=answers.Completion,
    ),
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        handler=_embeddings,
        summary="Turn texts into vectors.",
        body=(EmbeddingBody,),
        answer="Vectors, as OpenAI has them.",
        shape=answers.EmbeddingList,
    ),
    Endpoint(
        method="POST",
        path="/v1/responses",
        handler=response_routes.create_response,
        summary="Answer a conversation, one turn at a time.",
        body=(ResponsesBody,),
        answer="A response, or typed events of it, as OpenAI has them.",
        shape=response_shapes.Response,
        event=response_shapes.ResponseEvent,
    ),
    Endpoint(
        method="GET",
        path="/v1/responses/{response_id}",
        handler=response_routes.retrieve_response,
        summary="Say a stored response again, or follow one that is written in the background.",
        query=(
            Parameter("stream", {"type": "boolean", "default": False}, "Answer with its events."),
            Parameter(
                "starting_after",
                {"type": "integer", "minimum": 0},
                "The number of the last event that is known; needs `stream`.",
            ),
            Parameter("include_obfuscation", {"const": False}, "No event is obfuscated."),
        ),
        answer="The response, or typed events of it.",
        shape=response_shapes.Response,
        event=response_shapes.ResponseEvent,
    ),
    Endpoint(
        method="DELETE",
        path="/v1/responses/{response_id}",
        handler=response_routes.delete_response,
        summary="Forget a stored response.",
        answer="What is forgotten.",
        shape=response_shapes.DeletedResponse,
    ),
    Endpoint(
        method="GET",
        path="/v1/responses/{response_id}/input_items",
        handler=response_routes.list_input_items,
        summary="List the input of a stored response.",
        query=(
            Parameter(
                "limit",
                {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": response_routes.MAX_LISTED,
                    "default": 20,
                },
                "Items to list.",
            ),
            Parameter("order", {"enum": ["asc", "desc"], "default": "desc"}, "Oldest first?"),
            Parameter(
                "after", {"type": "string"}, "The id of the item that the list goes on from."
            ),
        ),
        answer="Some of its items.",
        shape=response_shapes.InputItems,
    ),
    Endpoint(
        method="POST",
        path="/v1/responses/{response_id}/cancel",
        handler=response_routes.cancel_response,
        summary="End a response that is written in the background.",
        answer="The response, ended.",
        shape=response_shapes.Response,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages",
        handler=_messages,
        summary="Answer a conversation, in Anthropic's words.",
        body=(MessagesBody,),
        answer="A message, or events of it, as Anthropic has them.",
        shape=anthropic.Message,
        event=anthropic.MessageEvent,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages/count_tokens",
        handler=_count_tokens,
        summary="Count the tokens of a conversation, in Anthropic's words.",
        body=(CountTokensBody,),
        answer="The count.",
        shape=anthropic.InputTokens,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        handler=_tokenize,
        summary="Turn a text or a conversation into tokens.",
        body=(TokenizeBody, TokenizeChatBody),
        answer="The tokens.",
        shape=answers.Tokens,
    ),
    Endpoint(
        method="POST",
        path="/detokenize",
        handler=_detokenize,
        summary="Turn tokens into text.",
        body=(DetokenizeBody,),
        answer="The text.",
        shape=answers.Text,
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        handler=_models,
        summary="List the models served here.",
        answer="OpenAI's list, with `max_model_len` for each model; Anthropic's for who sends the "
        "header anthropic-version.",
        shape=answers.ServedModels,
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{name:model}",
        handler=_model,
        summary="Describe one model.",
        answer="OpenAI's model, with `max_model_len`; Anthropic's for who sends the header "
        "anthropic-version.",
        shape=answers.ServedModel,
    ),
    Endpoint(
        method="GET",
        path="/health",
        handler=_health,
        summary="Say that this process is alive.",
        answer="It is alive.",
        shape=shapes.Alive,
    ),
    Endpoint(
        method="GET",
        path="/ready",
        handler=_ready,
        summary="Say whether a request would be answered; 503 and why, if not.",
        query=(
            Parameter(
                "verbose",
                {"type": "boolean", "default": False},
                "Also say the numbers behind that, in the answer and beside the error; needs the "
                "key, where one is asked for.",
            ),
        ),
        answer="It would.",
        shape=shapes.Ready,
    ),
    Endpoint(
        method="GET",
        path="/load",
        handler=_load,
        summary="Count the requests that this process is answering.",
        answer="The count.",
        shape=shapes.Load,
    ),
    Endpoint(
        method="GET",
        path="/version",
        handler=_version,
        summary="Say this server's version.",
        answer="The version.",
        shape=shapes.Version,
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        handler=_metrics,
        summary="Measure: latencies, tokens, requests.",
        answer="Prometheus' text format.",
        media_type="text/plain",
    ),
    Endpoint(
        method="GET",
        path="/openapi.json",
        handler=_openapi,
        summary="Describe these endpoints, for programs.",
        answer="An OpenAPI 3.1 document.",
    ),
    Endpoint(
        method="GET",
        path="/docs",
        handler=_docs,
        summary="Describe these endpoints, for people.",
        answer="A page.",
        media_type="text/html",
    ),
)
