"""Responses that are written without anybody listening, and that clients come back to.

    POST, background  ──▶ queued ──▶ in_progress ──▶ completed, incomplete or failed
                             └───── cancel ──┴─────▶ cancelled

While it runs, a response holds a permit like any other request; when it has ended it is kept like
any other response, in the same store. One that was asked for as a stream keeps its events, too: a
client that lost its connection asks for those after the last that it has. What is kept of those
that run is bounded as the store is.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from gateway.errors import Fault, RequestError, invalid, quote
from gateway.openai.response_answer import ResponsesAnswer
from gateway.openai.responses import ResponseCall, StoredResponse
from gateway.output import Piece
from gateway.tokenizer import Tokenizer
from router.caller import Caller
from router.engine import Engine
from router.generation import Generation
from router.response_store import ResponseStore

_END = b"\n\n"

_log = logging.getLogger(__name__)


class BackgroundRun:
    """One response that is being written: a `router.events.EventLog`, if it is a stream."""

    def __init__(
        self,
        call: ResponseCall,
        owner: str | None,
        tokenizer: Tokenizer,
        generation: Generation,
        room: "EventRoom",
    ) -> None:
        self.call = call
        self.owner = owner
        """Whom it answers: see `router.response_store`."""
        self.events: list[bytes] = []
        """Each at its number."""
        self.is_ended = False
        self.is_unwanted = False
        """It is not to be kept."""
        self._answer = ResponsesAnswer(call, tokenizer, self._keep)
        self._room = room
        self._response: StoredResponse | None = None
        self._generation = generation
        self._news = asyncio.Event()

    def body(self) -> dict[str, Any]:
        """The response as it is now."""
        return self._answer.body_so_far() if self._response is None else dict(self._response.body)

    async def write(self) -> StoredResponse:
        """Writes it to its end, which may be a failure."""
        try:
            if self.call.streams:
                self._record(self._answer.opening_events())
            async for pieces in self._generation.batches():
                self._take(pieces)
            if self.call.streams:
                self._record(self._answer.closing_events())
            else:
                self._answer.whole()
        except RequestError as error:
            self._end_early(error)
        except Exception:
            _log.exception("response %s failed in the background", self.call.response_id)
            self._end_early(RequestError(Fault.INTERNAL, "the server failed; see its log"))
        assert self._response is not None
        self._response = replace(self._response, events=tuple(self.events))
        return self._response

    def cancel(self) -> None:
        """Ends it as soon as may be."""
        self._generation.fail(RequestError(Fault.CLIENT_GONE, "the response was cancelled"))

    def end(self) -> None:
        """Nothing more will come."""
        self.is_ended = True
        self._room.leave(sum(map(len, self.events)))
        self._tell()

    async def news(self) -> None:
        """Returns when there are more events, or it has ended."""
        await self._news.wait()

    def _take(self, pieces: Sequence[Piece]) -> None:
        if not self.call.streams:
            self._answer.collect(pieces)
        elif events := self._answer.events(pieces):
            self._room.check()
            self._record(events)

    def _end_early(self, error: RequestError) -> None:
        is_cancelled = error.fault is Fault.CLIENT_GONE
        body = self._answer.cancelled() if is_cancelled else self._answer.failed(error)
        self._response = StoredResponse(body, (), self.call.input_items)
        if self.call.streams:
            end = self._answer.cancelling_events
            self._record(end() if is_cancelled else self._answer.error_events(error))

    def _record(self, events: bytes) -> None:
        self._room.take(len(events))
        self.events += [event + _END for event in events.split(_END) if event]
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _keep(self, _: str, response: StoredResponse) -> None:
        self._response = response


class EventRoom:
    """Bytes that the events of all that run may take up together; their ends may exceed it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def check(self) -> None:
        """Raises RequestError if there is none left."""
        if self.num_bytes >= self._max_bytes:
            raise RequestError(
                Fault.OVERLOADED,
                f"the events of responses in the background take up {self.num_bytes} bytes; "
                f"it may be {self._max_bytes}",
                retry_after_s=1,
            )

    def take(self, num_bytes: int) -> None:
        """More events are kept."""
        self.num_bytes += num_bytes

    def leave(self, num_bytes: int) -> None:
        """They are kept elsewhere, or nowhere."""
        self.num_bytes -= num_bytes


class BackgroundRuns:
    """All that run. Belongs to the event loop, but for `find` and `find_ended`, which change
    nothing."""

    def __init__(self, engine: Engine, store: ResponseStore) -> None:
        self._engine = engine
        self._store = store
        self._room = EventRoom(store.max_bytes)
        self._runs: dict[str, BackgroundRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        call: ResponseCall,
        tokenizer: Tokenizer,
        arrived_at: float,
        caller: Caller,
        permit: ExitStack,
    ) -> BackgroundRun:
        """Returns at once; what `permit` holds is held until it has ended. Raises RequestError if
        nobody can serve it now."""
        self._room.check()
        generation = permit.enter_context(self._engine.generate(call.requests, arrived_at, caller))
        held = permit.pop_all()
        run = BackgroundRun(call, caller.key_name, tokenizer, generation, self._room)
        self._runs[call.response_id] = run
        task = asyncio.create_task(self._write(run, held), name=call.response_id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    def find(self, owner: str | None, response_id: str) -> BackgroundRun | None:
        """The owner's of that id, while it runs."""
        run = self._runs.get(response_id)
        return run if run is not None and run.owner == owner else None

    def find_ended(self, owner: str | None, response_id: str) -> StoredResponse:
        """A response to go on from. Raises RequestError if its owner has none of that id, or it is
        not complete. May be called from any thread."""
        run = self.find(owner, response_id)
        status = "in_progress" if run is not None else ""
        if run is None:
            response = self._store.find(owner, response_id)
            status = response.body["status"]
            if status in ("completed", "incomplete"):
                return response
        raise invalid(
            "response_id",
            f"response {quote(response_id)} is {status}; a conversation goes on only from one that "
            "is completed or incomplete",
        )

    async def cancel(self, owner: str | None, response_id: str) -> dict[str, Any]:
        """The owner's response of that id, ended; one that had ended before is as it was.

        Raises RequestError if there is none of that id, or it was not asked for in the background.
        """
        run = self.find(owner, response_id)
        if run is not None:
            run.cancel()
            while not run.is_ended:
                await run.news()
            return run.body()
        body = self._store.find(owner, response_id).body
        if not body["background"]:
            raise invalid(
                "response_id",
                f"response {quote(response_id)} was not asked for with background; "
                "only such can be cancelled",
            )
        return dict(body)

    def delete(self, owner: str | None, response_id: str) -> None:
        """Forgets the owner's of that id, and ends it if it runs. Raises RequestError if there is
        none."""
        run = self.find(owner, response_id)
        if run is None:
            self._store.delete(owner, response_id)
            return
        run.is_unwanted = True
        run.cancel()

    def close(self) -> None:
        """Ends all that run."""
        for task in self._tasks:
            task.cancel()

    async def _write(self, run: BackgroundRun, held: ExitStack) -> None:
        with held:
            try:
                response = await run.write()
                if not run.is_unwanted:
                    self._store.keep(run.owner, run.call.response_id, response)
            finally:
                del self._runs[run.call.response_id]
                run.end()
