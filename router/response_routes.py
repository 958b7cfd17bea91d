"""/v1/responses over HTTP: made, made in the background, come back to, gone on from, ended.

Who has another's key comes back to nothing here: each key has the responses that it asked for.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.errors import invalid, quote
from gateway.openai.call import Call, compact
from gateway.openai.response_answer import ResponsesAnswer
from gateway.openai.responses import ResponseCall, parse_response
from gateway.tokenizer import Tokenizer
from router.answers import Answer, GenerationResponse
from router.backend import Backend
from router.caller import key_name_of
from router.events import EndedLog, EventLog, send_events
from router.whole import WholeResponse, send_json

MAX_LISTED = 100
"""Input items in one answer."""
_LISTED = 20
_ORDERS = ("asc", "desc")


async def create_response(request: Request) -> Response:
    """POST /v1/responses."""
    return _ResponsesResponse(_backend(request), _owner(request), time.monotonic())


async def retrieve_response(request: Request) -> Response:
    """GET /v1/responses/{id}: as it is now, or its events."""
    backend, owner, response_id = _named(request)
    query = query_of(request, ("stream", "starting_after", "include_obfuscation"))
    run = backend.background.find(owner, response_id)
    stored = None if run is not None else backend.responses.find(owner, response_id)
    streams = flag_of(query, "stream")
    if flag_of(query, "include_obfuscation"):
        raise invalid("include_obfuscation", "include_obfuscation is true; no event is obfuscated")
    after = _number(query, "starting_after", -1, 0, None)
    if not streams:
        if "starting_after" in query:
            raise invalid(
                "starting_after", f"starting_after is {after}; it needs stream to be true"
            )
        body = run.body() if run is not None else stored.body if stored is not None else None
        return WholeResponse(body)
    if run is not None and run.call.streams:
        return _EventsResponse(run, after + 1)
    if stored is not None and stored.events:
        return _EventsResponse(EndedLog(stored.events), after + 1)
    raise invalid(
        "stream",
        "stream is true; events are kept only of a response that was asked for with background "
        "and stream",
    )


async def delete_response(request: Request) -> Response:
    """DELETE /v1/responses/{id}."""
    backend, owner, response_id = _named(request)
    backend.background.delete(owner, response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def cancel_response(request: Request) -> Response:
    """POST /v1/responses/{id}/cancel."""
    backend, owner, response_id = _named(request)
    return WholeResponse(await backend.background.cancel(owner, response_id))


async def list_input_items(request: Request) -> Response:
    """GET /v1/responses/{id}/input_items."""
    backend, owner, response_id = _named(request)
    query = query_of(request, ("limit", "order", "after"))
    limit = _number(query, "limit", _LISTED, 1, MAX_LISTED)
    order = query.get("order", "desc")
    if order not in _ORDERS:
        raise invalid("order", f"order is {quote(order)}; it must be asc or desc")
    run = backend.background.find(owner, response_id)
    found = run.call if run is not None else backend.responses.find(owner, response_id)
    items = list(found.input_items if order == "asc" else reversed(found.input_items))
    if (after := query.get("after")) is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise invalid("after", f"after is {quote(after)}; no input item has that id")
        items = items[ids.index(after) + 1 :]
    listed = items[:limit]
    return WholeResponse(
        {
            "object": "list",
            "data": listed,
            "first_id": listed[0]["id"] if listed else "",
            "last_id": listed[-1]["id"] if listed else "",
            "has_more": len(items) > limit,
        }
    )


class _ResponsesResponse(GenerationResponse):
    """Answers one call, or begins it in the background."""

    def __init__(self, backend: Backend, owner: str | None, arrived_at: float) -> None:
        find = partial(backend.background.find_ended, owner)
        parse = partial(parse_response, find=find, keeps=backend.responses.keeps)
        super().__init__(backend, parse, self._answer, arrived_at)
        self._keep = partial(backend.responses.keep, owner)
        self._runs = backend.background

    async def respond(
        self, call: Call, permit: ExitStack, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """See `GenerationResponse`; what runs in the background takes the permit along."""
        assert isinstance(call, ResponseCall)
        if not call.in_background:
            await super().respond(call, permit, scope, receive, send)
            return
        tokenizer = self._backend.model.tokenizer
        run = self._runs.start(call, tokenizer, self._arrived_at, self._caller, permit)
        if call.streams:
            await send_events(run, 0, scope, receive, send)
        else:
            await send_json(compact(run.body()).encode(), send)

    def _answer(self, call: Call, tokenizer: Tokenizer) -> Answer:
        assert isinstance(call, ResponseCall)
        return ResponsesAnswer(call, tokenizer, self._keep)


class _EventsResponse(Response):
    """The events of a response that is kept or being written."""

    def __init__(self, log: EventLog, first: int) -> None:
        self._log = log
        self._first = first
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        await send_events(self._log, self._first, scope, receive, send)


def query_of(request: Request, known: tuple[str, ...]) -> Mapping[str, str]:
    """The parameters of the address. Raises RequestError: there are others."""
    for name in request.query_params:
        if name not in known:
            raise invalid(
                name, f"{name} is not a parameter of this endpoint; it has {', '.join(known)}"
            )
    return request.query_params


def flag_of(query: Mapping[str, str], name: str) -> bool:
    """Whether a parameter is true; named without a value it is. Raises RequestError."""
    said = query.get(name, "false") or "true"
    if said not in ("true", "false"):
        raise invalid(name, f"{name} is {quote(said)}; it must be true or false")
    return said == "true"


def _number(query: Mapping[str, str], name: str, default: int, least: int, most: int | None) -> int:
    said = query.get(name)
    if said is None:
        return default
    if not (said.isascii() and said.isdigit() and len(said) <= 10):
        raise invalid(name, f"{name} is {quote(said)}; it must be a whole number")
    value = int(said)
    if value < least:
        raise invalid(name, f"{name} is {value}; it must be at least {least}")
    if most is not None and value > most:
        raise invalid(name, f"{name} is {value}; it must be at most {most}")
    return value


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


def _owner(request: Request) -> str | None:
    """Whose responses are asked for."""
    return key_name_of(request.scope)


def _named(request: Request) -> tuple[Backend, str | None, str]:
    """Where to look for a response, whose it must be, and its id."""
    return _backend(request), _owner(request), request.path_params["response_id"]
