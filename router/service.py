"""`InferenceService` over gRPC: the same requests, by the same code, as over HTTP."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.errors import Fault, RequestError
from gateway.keys import ApiKeys
from gateway.model import Model
from gateway.output import Piece
from gateway.request import check_token_ids
from gateway.wire import (
    PieceWriter,
    embed_response,
    error_detail,
    parse_embed,
    parse_generate,
)
from protos.channels import LISTEN_KEEPALIVE
from protos.malformed import MalformedRefused
from protos.quire.v1 import inference_pb2, inference_pb2_grpc
from router.backend import Backend
from router.caller import Caller, grpc_caller
from router.embeddings import gather_vectors
from router.generation import Generation
from router.wait_limit import SEND_S, WaitLimit

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

RETRY_TRAILER = "grpc-retry-pushback-ms"
"""gRPC's own word for "try again after so many milliseconds": every error worth a retry has it."""

DETAILS_TRAILER = "grpc-status-details-bin"
"""Where gRPC's libraries look for what an error says to programs: a google.rpc.Status."""

STATUS_S = 1.0
"""A status waits behind what the client does not read; its handler does so no longer than this."""

WATCH_S = 1.0
"""Between two looks at whether a watched status has changed."""
MAX_WATCHERS = 64
"""Nobody needs a key to watch."""

Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

_log = logging.getLogger(__name__)

STATUS_CODES: dict[Fault, grpc.StatusCode] = {
    Fault.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.MISSING_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.UNKNOWN_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.NOT_SUPPORTED: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Fault.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    Fault.UNKNOWN_RESPONSE: grpc.StatusCode.NOT_FOUND,
    Fault.UNKNOWN_PATH: grpc.StatusCode.UNIMPLEMENTED,
    Fault.WRONG_METHOD: grpc.StatusCode.UNIMPLEMENTED,
    Fault.WRONG_HOST: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.WRONG_CONTENT_TYPE: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.BODY_TOO_SLOW: grpc.StatusCode.DEADLINE_EXCEEDED,
    Fault.BODY_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.SLOW_READER: grpc.StatusCode.ABORTED,
    Fault.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.CLIENT_GONE: grpc.StatusCode.CANCELLED,
    Fault.INTERNAL: grpc.StatusCode.INTERNAL,
    Fault.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Fault.TIMED_OUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """The servicer; a call's coroutine is cancelled when its client leaves, which aborts it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> None:
        """See the proto."""
        backend = self._backend
        arrived_at = time.monotonic()
        async with self._answering(request, context) as caller:
            with backend.permits.permit(caller.tenant):
                max_model_len = backend.engine.check_available()
                request_id, dice = secrets.token_hex(12), backend.dice_of_call()
                call = await backend.in_thread(
                    parse_generate, request, backend.model, max_model_len, request_id, dice
                )
                requests = (call.request,)
                with backend.engine.generate(requests, arrived_at, caller) as generation:
                    pieces = generation.wholes() if request.whole else _each(generation)
                    writer = PieceWriter(call, backend.model.tokenizer)
                    await _write_pieces(context, pieces, writer)

    async def Embed(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.EmbedRequest, context: Context
    ) -> inference_pb2.EmbedResponse:
        """See the proto."""
        backend = self._backend
        arrived_at = time.monotonic()
        async with self._answering(request, context) as caller:
            with backend.permits.permit(caller.tenant):
                served = backend.engine.check_embeds()
                call = await backend.in_thread(
                    parse_embed,
                    request,
                    backend.model,
                    served.max_model_len,
                    served.embedding_dim,
                    secrets.token_hex(12),
                )
                with backend.engine.generate(call.requests, arrived_at, caller) as generation:
                    vectors, num_cached = await gather_vectors(generation)
                return await backend.in_thread(embed_response, call, vectors, num_cached)

    async def Tokenize(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        """See the proto."""
        backend = self._backend
        async with self._answering(request, context) as caller:
            backend.model.check_name(request.model)
            with backend.permits.permit(caller.tenant):
                tokens = await backend.in_thread(
                    backend.model.tokenizer.encode,
                    request.text,
                    add_special_tokens=request.add_special_tokens,
                )
            return inference_pb2.TokenizeResponse(token_ids=tokens)

    async def Detokenize(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        """See the proto."""
        backend = self._backend
        async with self._answering(request, context) as caller:
            backend.model.check_name(request.model)
            with backend.permits.permit(caller.tenant):
                text = await backend.in_thread(_detokenize, backend.model, request.token_ids)
            return inference_pb2.DetokenizeResponse(text=text)

    async def ListModels(  # noqa: N802 - gRPC's name
        self, request: inference_pb2.ListModelsRequest, context: Context
    ) -> inference_pb2.ListModelsResponse:
        """See the proto."""
        async with self._answering(request, context):
            backend = self._backend
            length = backend.engine.cell.max_model_len or 0
            model = inference_pb2.Model(name=backend.model.name, max_model_len=length)
            return inference_pb2.ListModelsResponse(models=[model])

    @contextlib.asynccontextmanager
    async def _answering(self, request: Message, context: Context) -> AsyncIterator[Caller]:
        """Around one call: its errors become its status. gRPC keeps the request to the end of its
        call, and so the request has its room for as long."""
        try:
            with self._backend.room.place(self._backend.max_body_bytes) as place:
                place.count(request.ByteSize())
                yield self._caller(context)
        except RequestError as error:
            await _abort(context, error)
        except Exception:  # gRPC would tell the client what it is
            _log.exception("a call failed for a reason that is a defect of the router's")
            await _abort(context, RequestError(Fault.INTERNAL, "the server failed"))

    def _caller(self, context: Context) -> Caller:
        """Who calls. Raises RequestError."""
        metadata = context.invocation_metadata()
        name = _key_name(self._backend.keys, metadata)
        return grpc_caller(dict(metadata or ()), context.time_remaining(), name)


class _KeyInterceptor(grpc.aio.ServerInterceptor):
    """Lets nobody past without a key, but for what probes ask."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """See grpc.aio."""
        if not handler_call_details.method.startswith(f"/{HEALTH}/"):
            try:
                _key_name(self._keys, handler_call_details.invocation_metadata)
            except RequestError as error:
                return grpc.stream_stream_rpc_method_handler(_refuse(error))
        return await continuation(handler_call_details)


def _refuse(error: RequestError) -> Callable[[object, Context], Awaitable[None]]:
    async def refuse(_requests: object, context: Context) -> None:
        await _abort(context, error)

    return refuse


def _key_name(keys: ApiKeys, metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """Of the key that a call brings; None where none is asked for. Raises RequestError."""
    said = {key: value for key, value in metadata or () if isinstance(value, str)}
    return keys.check(said.get("authorization"), said.get("x-api-key"))


def create_server(backend: Backend, *, reuse_port: bool) -> grpc.aio.Server:
    """The gRPC server with the inference, health and reflection services; not yet listening.

    `reuse_port`: other processes may listen where it does.
    """
    keys = (_KeyInterceptor(backend.keys),) if backend.keys else ()
    server = grpc.aio.server(
        interceptors=(*keys, MalformedRefused(_refuse_malformed)),
        maximum_concurrent_rpcs=backend.uploads.limit,
        options=(
            *LISTEN_KEEPALIVE,
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_receive_message_length", backend.max_body_bytes),
        ),
    )
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(backend), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(backend), server)
    reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), server)
    return server


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc, unused-ignore]  # no stubs
    """Serving as a process from the start, and as `InferenceService` while it is ready.

    Looked up whenever it is asked for, so that it cannot be out of date.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._num_watchers = 0

    async def Check(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """NOT_FOUND: no such service."""
        response = self._response(request.service)
        if response.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return response

    async def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Says the status now, and whenever it has changed. RESOURCE_EXHAUSTED: too many watch."""
        if self._num_watchers >= MAX_WATCHERS:
            message = f"{MAX_WATCHERS} calls watch already, which is the most; ask with Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._num_watchers += 1
        try:
            said = None
            while True:
                response = self._response(request.service)
                if response != said:
                    yield response
                    said = response
                await asyncio.sleep(WATCH_S)
        finally:
            self._num_watchers -= 1

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        response = health_pb2.HealthCheckResponse
        if service == SERVICE and not self._backend.readiness.is_ready():
            return response(status=response.NOT_SERVING)
        known = service in ("", SERVICE)
        return response(status=response.SERVING if known else response.SERVICE_UNKNOWN)


def _detokenize(model: Model, token_ids: Sequence[int]) -> str:
    """Raises RequestError: not a token of the model."""
    check_token_ids("token_ids", token_ids, model.tokenizer.vocab_size)
    return model.tokenizer.decode(token_ids, skip_special_tokens=False)


async def _each(generation: Generation) -> AsyncIterator[Piece]:
    async for pieces in generation.batches():
        for piece in pieces:
            yield piece


async def _write_pieces(
    context: Context, pieces: AsyncIterator[Piece], writer: PieceWriter
) -> None:
    """Raises RequestError if the call cannot be completed or the client stops reading."""
    try:
        async with WaitLimit(SEND_S) as limit:
            async for piece in pieces:
                message = writer.message(piece)
                with limit:
                    await context.write(message)
    except TimeoutError as error:
        raise RequestError(Fault.SLOW_READER, "the client stopped reading") from error


async def _refuse_malformed(context: Context, message: str) -> NoReturn:
    await _abort(context, RequestError(Fault.INVALID, message))


async def _abort(context: Context, error: RequestError) -> NoReturn:
    """Ends the call, without waiting for long until the client reads what comes before that."""
    code = STATUS_CODES[error.fault]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    status.details.add().Pack(error_detail(error))
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_TRAILER, status.SerializeToString())]
    if error.retry_after_s is not None:
        trailers.append((RETRY_TRAILER, str(1000 * error.retry_after_s)))
    context.set_trailing_metadata(tuple(trailers))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STATUS_S):
            await context.abort(code, error.message)
    raise grpc.aio.AbortError
