"""The gRPC face of the cell: what arrives on each stream, in which order, and what it means.

Both streams move bytes, not messages: a message that does not parse is then ours to answer, and a
plan is serialised once for all ranks. Whoever opens a stream says hello first.
"""

from collections.abc import AsyncIterator, Sequence

import grpc
from grpc_health.v1 import (
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection

from protos import channels
from protos.malformed import MalformedRefused
from protos.quire.v1 import scheduler_pb2, worker_pb2
from protos.trust import NO_TRUST, Trust
from scheduler.admin import ADMIN_SERVICE, AdminService
from scheduler.attachments import Misfit, Rank
from scheduler.cell import Cell
from scheduler.core.events import Refused
from scheduler.guard import Guard
from scheduler.routers import Router
from scheduler.stream import Context, Stream
from scheduler.wire import frames, requests, workers
from scheduler.wire.columns import Malformed

PROTOCOL_VERSION = 1
SCHEDULER_SERVICE = scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name
WORKER_SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name

ROUTER_OUTBOX_BYTES = 16 * 2**20
"""Unread by one router, beyond which it is cut off."""
RANK_OUTBOX_BYTES = 256 * 2**20
"""The same for a rank: more than all plans in flight to it, at their largest."""
_MAX_MESSAGE_BYTES = 64 * 2**20
_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a second scheduler beside the first
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    *channels.LISTEN_KEEPALIVE,
]


class RouterSession:
    """One router's stream: a hello, then submits, aborts and finishes in any order."""

    def __init__(self, cell: Cell, stream: Stream) -> None:
        self._cell = cell
        self._stream = stream
        self._router: Router | None = None

    async def receive(self, data: bytes) -> None:
        """Takes one message. Raises Malformed."""
        message = requests.parse_connect(data)
        kind = message.WhichOneof("message")
        if self._router is None:
            if kind != "hello":
                raise Malformed("the first message must be a RouterHello")
            self._greet(message.hello)
        elif kind == "submit":
            await self._submit(self._router, message.submit)
        elif kind == "abort":
            self._cell.abort(self._router, message.abort.sequence_id)
        elif kind == "finish":
            finish = message.finish
            self._cell.finish(self._router, finish.sequence_id, finish.num_tokens)
        elif kind == "leaving":
            self._cell.announce_leave(self._router)
        else:
            raise Malformed("a RouterHello comes once")

    def end(self) -> None:
        """The stream is over."""
        if self._router is not None:
            self._cell.leave(self._router)

    def _greet(self, hello: scheduler_pb2.RouterHello) -> None:
        if _speaks_ours(hello.protocol_version, self._stream):
            router_id = requests.check_router_hello(hello)
            self._router = self._cell.connect(router_id, self._stream)

    async def _submit(self, router: Router, submit: scheduler_pb2.Submit) -> None:
        """Until the first worker attaches there is nothing to check a request against: it and
        all that this router says after it wait in the stream, where flow control bounds them."""
        await self._cell.model_known.wait()
        assert self._cell.model is not None
        try:
            self._cell.submit(
                requests.decode_submit(submit, router=router.number, model=self._cell.model)
            )
        except Refused as refused:
            if not submit.probe:
                self._cell.metrics.num_refused[refused.reason] += 1
            self._stream.send(frames.encode_refusal(submit.sequence_id, refused))


class RankSession:
    """One rank's stream: a hello, then results and signs of life, perhaps a farewell."""

    def __init__(self, cell: Cell, stream: Stream) -> None:
        self._cell = cell
        self._stream = stream
        self._rank: Rank | None = None

    async def receive(self, data: bytes) -> None:
        """Takes one message. Raises Malformed."""
        message = workers.parse_attach(data)
        kind = message.WhichOneof("message")
        if self._rank is None:
            if kind != "hello":
                raise Malformed("the first message must be a Hello")
            self._greet(message.hello)
        elif kind == "result":
            result = workers.decode_result(
                message.result,
                num_slots=self._rank.num_slots,
                vocab_size=self._rank.hello.model.vocab_size,
                embedding_dim=self._rank.hello.model.embedding_dim,
            )
            self._cell.result(self._rank, result)
        elif kind == "telemetry":
            self._cell.heard(self._rank)
        elif kind == "farewell":
            self._rank.takes_leave = True
        else:
            raise Malformed("a Hello comes once")

    def end(self) -> None:
        """The stream is over."""
        if self._rank is not None:
            self._cell.part(self._rank)

    def _greet(self, hello: worker_pb2.Hello) -> None:
        if not _speaks_ours(hello.protocol_version, self._stream):
            return
        try:
            self._rank = self._cell.join(workers.decode_hello(hello), self._stream)
        except (Malformed, Misfit) as error:  # dialling again would not change it
            self._stream.close(grpc.StatusCode.FAILED_PRECONDITION, str(error))


def _speaks_ours(version: int, stream: Stream) -> bool:
    if version == PROTOCOL_VERSION:
        return True
    details = f"protocol_version is {version}; this scheduler speaks {PROTOCOL_VERSION}"
    stream.close(grpc.StatusCode.FAILED_PRECONDITION, details)
    return False


async def _serve_session(
    session: RouterSession | RankSession, stream: Stream, guard: Guard
) -> None:
    async def receive(data: bytes) -> None:
        with guard.watching(Malformed):
            await session.receive(data)

    try:
        await stream.run(receive)
    finally:
        guard.run(session.end)
    await stream.finish()


class Services:
    """The handlers of both services over one cell."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    async def connect(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        """SchedulerService.Connect."""
        stream = Stream(context, max_outbox_bytes=ROUTER_OUTBOX_BYTES)
        await _serve_session(RouterSession(self._cell, stream), stream, self._cell.guard)

    async def attach(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        """WorkerService.Attach."""
        stream = Stream(context, max_outbox_bytes=RANK_OUTBOX_BYTES)
        await _serve_session(RankSession(self._cell, stream), stream, self._cell.guard)

    async def get_state(
        self, _request: scheduler_pb2.GetStateRequest, _context: object
    ) -> scheduler_pb2.GetStateResponse:
        """SchedulerService.GetState."""
        return frames.state_of(self._cell.view(), self._cell.state())

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What to register: streams in bytes, calls in messages."""
        return (
            grpc.method_handlers_generic_handler(
                SCHEDULER_SERVICE,
                {
                    "Connect": grpc.stream_stream_rpc_method_handler(self.connect),
                    "GetState": grpc.unary_unary_rpc_method_handler(
                        self.get_state,
                        request_deserializer=scheduler_pb2.GetStateRequest.FromString,
                        response_serializer=scheduler_pb2.GetStateResponse.SerializeToString,
                    ),
                },
            ),
            grpc.method_handlers_generic_handler(
                WORKER_SERVICE, {"Attach": grpc.stream_stream_rpc_method_handler(self.attach)}
            ),
        )


class PortTaken(Exception):
    """An address cannot be listened on; the message names it."""


class GrpcServer:
    """A gRPC server with health and reflection, on every address given."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        names: Sequence[str],
        trust: Trust = NO_TRUST,
    ) -> None:
        """`names` are those of the services that the handlers are of."""
        self._trust = trust
        self._names = names
        self._server = grpc.aio.server(
            interceptors=(*channels.interceptors(self._trust), MalformedRefused()),
            options=_OPTIONS,
        )
        self._server.add_generic_rpc_handlers(tuple(handlers))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        told = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(told, self._server)

    @classmethod
    def of_cell(cls, cell: Cell, trust: Trust = NO_TRUST) -> "GrpcServer":
        """What routers and workers dial."""
        return cls(Services(cell).handlers(), (SCHEDULER_SERVICE, WORKER_SERVICE), trust)

    @classmethod
    def of_admin(cls, cell: Cell, trust: Trust = NO_TRUST) -> "GrpcServer":
        """What operators dial."""
        return cls(AdminService(cell).handlers(), (ADMIN_SERVICE,), trust)

    def listen(self, address: str) -> str:
        """Binds HOST:PORT (port 0: any free one) or unix:PATH; returns it with the port bound.

        Raises PortTaken.
        """
        try:
            port = channels.bind(self._trust, self._server, address)
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {address}: is another process there?") from error
        if address.startswith("unix:"):
            return address
        return f"{address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Serves, and says so to whoever asks for its health."""
        await self._server.start()
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def announce_end(self) -> None:
        """Health turns to NOT_SERVING."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and ends what is left of the others after the grace."""
        await self._server.stop(grace_s)
