"""Answering one call for embeddings over HTTP, and waiting for its vectors."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import Fault, RequestError
from gateway.openai.embeddings import embeddings_body, parse_embeddings
from router.answers import send_json, watch
from router.backend import Backend
from router.caller import Caller, http_caller
from router.generation import Generation


class EmbeddingsResponse(Response):
    """Reads, runs and answers one call; everything happens when it is sent."""

    def __init__(self, backend: Backend, arrived_at: float) -> None:
        self._backend = backend
        self._arrived_at = arrived_at
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call. Raises RequestError."""
        backend = self._backend
        request = Request(scope, receive)
        try:
            caller = http_caller(scope)
            # What would be refused now is refused before its body is read.
            backend.permits.check()
            backend.engine.check_embeds()
            content = await backend.read_body(request)
            with backend.permits.permit():
                body = await self._answer(content, caller, scope, receive)
        except RequestError as error:
            if error.fault is not Fault.CLIENT_GONE:
                raise
            return
        await send_json(body, send)

    async def _answer(
        self, content: bytes, caller: Caller, scope: Scope, receive: Receive
    ) -> bytes:
        backend = self._backend
        served = backend.engine.check_embeds()
        call, encoding = await backend.in_thread(
            parse_embeddings,
            content,
            backend.model,
            served.max_model_len,
            served.embedding_dim,
            scope["state"]["request_id"],
        )
        scope["state"]["request_id"] = call.request_id
        with backend.engine.generate(call.requests, self._arrived_at, caller) as generation:
            async with watch(receive, generation):
                vectors, num_cached = await gather_vectors(generation)
        return await backend.in_thread(embeddings_body, call, encoding, vectors, sum(num_cached))


async def gather_vectors(generation: Generation) -> tuple[list[bytes], list[int]]:
    """Of every input its vector, and how much of it was cached, once all are there.

    Raises RequestError when the call cannot be completed.
    """
    async for _ in generation.batches():
        pass
    ends = [sample.finished for sample in generation.samples if sample.finished is not None]
    return [end.vector for end in ends], [end.num_cached_tokens for end in ends]
