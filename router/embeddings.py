"""Answering one call for embeddings over HTTP, and waiting for its vectors."""

from contextlib import ExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.embedding import EmbeddingCall
from gateway.errors import Fault, RequestError
from gateway.openai.embeddings import embeddings_body, parse_embeddings
from router.answers import watch
from router.backend import Backend
from router.caller import Caller, http_caller
from router.generation import Generation
from router.whole import send_json


class EmbeddingsResponse(Response):
    """Reads, runs and answers one call; everything happens when it is sent."""

    def __init__(self, backend: Backend, arrived_at: float) -> None:
        self._backend = backend
        self._arrived_at = arrived_at
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call. Raises RequestError."""
        backend = self._backend
        try:
            caller = http_caller(scope)
            # What would be refused now is refused before its body is read.
            backend.permits.check(caller.tenant)
            backend.engine.check_embeds()
            with ExitStack() as permit:
                body = await self._answer(caller, permit, scope, receive)
                await send_json(body, send)
        except RequestError as error:
            if error.fault is not Fault.CLIENT_GONE:
                raise

    async def _answer(
        self, caller: Caller, permit: ExitStack, scope: Scope, receive: Receive
    ) -> bytes:
        backend = self._backend
        call, encoding = await self._call(Request(scope, receive), caller.tenant, permit)
        scope["state"]["request_id"] = call.request_id
        with backend.engine.generate(call.requests, self._arrived_at, caller) as generation:
            async with watch(receive, generation):
                vectors, num_cached = await gather_vectors(generation)
        return await backend.in_thread(embeddings_body, call, encoding, vectors, sum(num_cached))

    async def _call(
        self, request: Request, tenant: str, permit: ExitStack
    ) -> tuple[EmbeddingCall, str]:
        """What the body asks for; the body itself is gone when this returns."""
        backend = self._backend
        async with backend.body(request, tenant) as content:
            permit.enter_context(backend.permits.permit(tenant))
            served = backend.engine.check_embeds()
            return await backend.in_thread(
                parse_embeddings,
                content,
                backend.model,
                served.max_model_len,
                served.embedding_dim,
                request.scope["state"]["request_id"],
            )


async def gather_vectors(generation: Generation) -> tuple[list[bytes], list[int]]:
    """Of every input its vector, and how much of it was cached, once all are there.

    Raises RequestError when the call cannot be completed.
    """
    async for _ in generation.batches():
        pass
    ends = [sample.finished for sample in generation.samples if sample.finished is not None]
    return [end.vector for end in ends], [end.num_cached_tokens for end in ends]
