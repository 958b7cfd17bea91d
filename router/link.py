"""The connection to the scheduler: one multiplexed stream, dialled again whenever it breaks.

What has not been written when the stream breaks is dropped: the listener knows what is in flight
and submits it anew. The scheduler says something about once a second, so silence means that it
hangs, and is treated as a break.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn, TypeAlias

import grpc

from protos.backoff import backoff
from protos.channels import KEEPALIVE, dial
from protos.outage import Outage, is_unsaid, plainly
from protos.quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from protos.trust import NO_TRUST, Trust
from router.messages import Listener, Submission
from router.wait_limit import WaitLimit
from router.wire import (
    cell_status,
    frame_columns,
    frame_logprobs,
    frame_scores,
    hello_message,
    leaving_message,
    refusal_of,
    sequence_finished,
    submit_message,
)

SILENCE_S = 15.0
"""After so long without a word the scheduler is taken for hanging."""
WELCOME_S = 5.0
LAST_WORDS_S = 1.0
"""In which a stream that cannot be written to any more says why."""

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    *KEEPALIVE,
)

_log = logging.getLogger(__name__)

_Half: TypeAlias = Coroutine[Any, Any, None]
Call = grpc.aio.StreamStreamCall[scheduler_pb2.ConnectRequest, scheduler_pb2.ConnectResponse]


class Link:
    """Holds the stream while `run` runs; implements `router.messages.Uplink`."""

    def __init__(
        self,
        address: str,
        router_id: str,
        listener: Listener,
        trust: Trust = NO_TRUST,
        *,
        keeps_tenants_apart: bool = False,
    ) -> None:
        self.keeps_tenants_apart = keeps_tenants_apart
        """None finds what another's requests have left in the cache."""
        self._address = address
        self._trust = trust
        self._router_id = router_id
        self._listener = listener
        self._outbox: asyncio.Queue[scheduler_pb2.ConnectRequest] | None = None
        """None while not connected."""
        self._is_leaving = False

    async def run(self) -> NoReturn:
        """Connects and listens until cancelled."""
        delays = backoff()
        outage = Outage(f"the scheduler at {self._address}")
        reason: str | None = None
        while True:
            try:
                await self._session()
                reason = "it closed the stream"
            except grpc.aio.AioRpcError as error:
                was_refused = self._outbox is None and is_unsaid(error.details())
                if reason is None or not was_refused:
                    reason = plainly(error.code().name, error.details())
            except TimeoutError:
                reason = "it does not answer"
            if self._outbox is not None:
                self._outbox = None
                self._listener.lost()
                delays = backoff()
                outage.over()
            if line := outage.failed(reason, time.monotonic()):
                _log.warning("%s", line)
            await asyncio.sleep(next(delays))

    def submit(self, submission: Submission) -> None:
        """See `Uplink`."""
        message = submit_message(submission)
        if self.keeps_tenants_apart:
            said = message.submit.cache_salt
            message.submit.cache_salt = own_salt(message.submit.tenant, said)
        self._send(message)

    def abort(self, sequence_ids: Sequence[int]) -> None:
        """See `Uplink`."""
        self._send(
            scheduler_pb2.ConnectRequest(abort=scheduler_pb2.Abort(sequence_id=sequence_ids))
        )

    def finish(self, sequence_id: int, num_tokens: int) -> None:
        """See `Uplink`."""
        self._send(
            scheduler_pb2.ConnectRequest(
                finish=scheduler_pb2.Finish(sequence_id=sequence_id, num_tokens=num_tokens)
            )
        )

    def leave(self) -> None:
        """See `Uplink`. Every scheduler that is met from now on is told, too."""
        self._is_leaving = True
        self._send(leaving_message())

    def _send(self, message: scheduler_pb2.ConnectRequest) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(message)

    async def _session(self) -> None:
        """One stream, from dialling to its end."""
        async with dial(self._trust, self._address, _CHANNEL_OPTIONS) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            call: Call = stub.Connect(metadata=self._trust.metadata)
            try:
                async with asyncio.timeout(WELCOME_S):
                    with contextlib.suppress(asyncio.InvalidStateError):  # over: reading says why
                        await call.write(hello_message(self._router_id))
                    first = await _next(call)
                if first is None or not first.HasField("welcome"):
                    return
                outbox: asyncio.Queue[scheduler_pb2.ConnectRequest] = asyncio.Queue()
                self._outbox = outbox
                if self._is_leaving:
                    self._send(leaving_message())
                _log.info("connected to the scheduler at %s", self._address)
                self._listener.welcomed(first.welcome.incarnation)
                await _until_broken(self._read(call), self._write(call, outbox))
            finally:
                call.cancel()

    async def _read(self, call: Call) -> None:
        async with WaitLimit(SILENCE_S) as silence:
            while True:
                with silence:
                    message = await _next(call)
                if message is None:
                    return
                self._dispatch(message)

    async def _write(self, call: Call, outbox: asyncio.Queue[scheduler_pb2.ConnectRequest]) -> None:
        """Ends with the stream; the reader learns why."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(await outbox.get())

    def _dispatch(self, message: scheduler_pb2.ConnectResponse) -> None:
        listener = self._listener
        match message.WhichOneof("message"):
            case "frame":
                frame = message.frame
                for sequence_id, logprobs in frame_scores(frame):
                    listener.scored(sequence_id, logprobs)
                if frame.token_id:
                    sequence_ids, token_ids = frame_columns(frame)
                    listener.tokens(sequence_ids, token_ids, frame_logprobs(frame, token_ids))
                for finished in frame.finished:
                    listener.finished(finished.sequence_id, sequence_finished(finished))
            case "status":
                listener.status(cell_status(message.status, time.monotonic()))
            case "refusal":
                refusal = message.refusal
                listener.refused(refusal.sequence_id, refusal_of(refusal))


def own_salt(tenant: str, said: str) -> str:
    """The salt of a tenant's requests that say this one: nobody else can say what comes out."""
    return hashlib.sha256(f"{tenant}\n{said}".encode()).hexdigest()


async def _until_broken(reading: _Half, writing: _Half) -> None:
    """Both halves of a stream, until either ends, and with it the other. Raises what ended it."""
    reader, writer = asyncio.create_task(reading), asyncio.create_task(writing)
    try:
        await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((reader,), timeout=LAST_WORDS_S)
        for half in (writer, reader):
            if half.done() and not half.cancelled():
                half.result()
    finally:
        for half in (reader, writer):
            half.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)


async def _next(call: Call) -> scheduler_pb2.ConnectResponse | None:
    """The next message; None at the end of the stream."""
    message = await call.read()
    return message if isinstance(message, scheduler_pb2.ConnectResponse) else None
