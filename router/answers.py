"""Answering one generation call over HTTP: as one response, or as server-sent events.

The response begins with the first tokens and not before, so whatever goes wrong until then still
gets its proper status. After that, an error is an event of the stream, which then ends without
`[DONE]`. A stream for which nothing comes for long gets a comment instead, even as its beginning:
proxies end a connection on which nothing moves. How all that is written is the dialect's.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import Fault, RequestError
from gateway.model import Model
from gateway.openai.call import Call, compact
from gateway.output import Piece
from gateway.tokenizer import Tokenizer
from router.backend import Backend
from router.beam_search import BeamGeneration, beam_search
from router.caller import NOBODY, http_caller
from router.events import EVENT_HEADERS, KEEP_ALIVE_S
from router.generation import Generation
from router.whole import send_json

_log = logging.getLogger(__name__)


class Answer(Protocol):
    """An answer in some dialect. It is fed the pieces of all samples, and either writes each as
    events of a stream or collects them for one response."""

    def events(self, pieces: Sequence[Piece]) -> bytes:
        """Of these pieces; nothing for those that show nothing."""

    def idle_events(self) -> bytes:
        """What says, in a stream on which nothing moves, that we are still here."""

    def closing_events(self) -> bytes:
        """The end of a stream that ended well."""

    def error_events(self, error: RequestError) -> bytes:
        """The end of a stream that failed."""

    def collect(self, pieces: Sequence[Piece]) -> None:
        """Keeps these pieces for `whole`."""

    def whole(self) -> dict[str, Any]:
        """The response, when every sample has ended."""


Parse = Callable[[bytes, Model, int, str, random.Random], Call]
MakeAnswer = Callable[[Call, Tokenizer], Answer]


class GenerationResponse(Response):
    """Reads, runs and answers one call; everything happens when it is sent."""

    def __init__(
        self, backend: Backend, parse: Parse, make_answer: MakeAnswer, arrived_at: float
    ) -> None:
        self._backend = backend
        self._parse = parse
        self._make_answer = make_answer
        self._arrived_at = arrived_at
        self._caller = NOBODY
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call. Raises RequestError if it fails before the response has begun."""
        backend = self._backend
        try:
            self._caller = http_caller(scope)
            # What would be refused now is refused before its body is read; and a body that comes
            # slowly holds no permit of those that are answered.
            backend.permits.check(self._caller.tenant)
            backend.engine.check_available()
            with ExitStack() as permit:
                call = await self._call(Request(scope, receive), permit)
                scope["state"]["request_id"] = call.request_id
                await self.respond(call, permit, scope, receive, send)
        except RequestError as error:
            if error.fault is not Fault.CLIENT_GONE:
                raise

    async def _call(self, request: Request, permit: ExitStack) -> Call:
        """What the body asks for; the body itself is gone when this returns."""
        backend, tenant = self._backend, self._caller.tenant
        dice = backend.dice_of_call()
        async with backend.body(request, tenant) as content:
            permit.enter_context(backend.permits.permit(tenant))
            max_model_len = backend.engine.check_available()
            request_id = request.scope["state"]["request_id"]
            return await backend.in_thread(
                self._parse, content, backend.model, max_model_len, request_id, dice
            )

    async def respond(
        self, call: Call, permit: ExitStack, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Runs and answers it, within its permit. Raises RequestError if it fails before the
        response has begun."""
        engine = self._backend.engine
        answer = self._make_answer(call, self._backend.model.tokenizer)
        if call.requests[0].beams is not None:
            with beam_search(engine, call.requests, self._arrived_at, self._caller) as search:
                async with watch(receive, search):
                    await _whole(answer, search, send)
            return
        with engine.generate(call.requests, self._arrived_at, self._caller) as generation:
            async with watch(receive, generation):
                if call.streams:
                    await _stream(answer, generation, scope, send)
                else:
                    await _whole(answer, generation, send)


@asynccontextmanager
async def watch(receive: Receive, generation: Generation | BeamGeneration) -> AsyncIterator[None]:
    """Ends the generation as soon as the client has left."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.fail(RequestError(Fault.CLIENT_GONE, "the client left"))

    task = asyncio.create_task(until_gone())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _whole(answer: Answer, generation: Generation | BeamGeneration, send: Send) -> None:
    async for piece in generation.wholes():
        answer.collect([piece])

    def render() -> bytes:
        return compact(answer.whole()).encode()

    # The logprobs of prompts are a lot to write, and others' streams go on meanwhile.
    is_long = any(sample.scores is not None for sample in generation.samples)
    body = await asyncio.to_thread(render) if is_long else render()
    await send_json(body, send)


async def _stream(answer: Answer, generation: Generation, scope: Scope, send: Send) -> None:
    with generation.nudges(KEEP_ALIVE_S):
        await _send_events(answer, generation, send, scope["state"]["request_id"])


async def _send_events(answer: Answer, generation: Generation, send: Send, request_id: str) -> None:
    async def write(body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})

    started = False
    try:
        async for pieces in generation.batches():
            events = answer.events(pieces) if pieces else answer.idle_events()
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
            if events:
                await write(events)
        await write(answer.closing_events(), more=False)
    except RequestError as error:
        if not started or error.fault is Fault.CLIENT_GONE:
            raise
        _log.warning("request %s failed in its stream: %s", request_id, error.message)
        await write(answer.error_events(error), more=False)
