"""A scheduler of a gRPC server and queues: tests say what it sends and read what it got."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from protos.channels import interceptors
from protos.quire.v1 import worker_pb2, worker_pb2_grpc
from protos.trust import NO_TRUST, Trust

PATIENCE_S = 60.0


class Attachment:
    """One stream, as the scheduler's side sees it."""

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._requests: asyncio.Queue[worker_pb2.AttachRequest | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        """Set by a test to end the stream in order."""

    async def receive(self) -> worker_pb2.AttachRequest | None:
        """The next message that is not telemetry; None at the stream's end."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                request = await self._requests.get()
                if request is None or request.WhichOneof("message") != "telemetry":
                    return request

    async def receive_telemetry(self) -> worker_pb2.Telemetry:
        """The next message, which must be telemetry."""
        async with asyncio.timeout(PATIENCE_S):
            request = await self._requests.get()
        assert request is not None
        assert request.WhichOneof("message") == "telemetry"
        return request.telemetry

    async def result(self) -> worker_pb2.StepResult:
        """The next message, which must be a step result."""
        request = await self.receive()
        assert request is not None
        assert request.WhichOneof("message") == "result"
        return request.result

    async def farewell(self) -> None:
        """The next message, which must be a farewell."""
        request = await self.receive()
        assert request is not None
        assert request.WhichOneof("message") == "farewell"

    async def welcome(self, epoch: int) -> None:
        """Sends a Welcome."""
        await self._send(worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=epoch)))

    async def plan(self, plan: worker_pb2.BatchPlan) -> None:
        """Sends a plan."""
        await self._send(worker_pb2.AttachResponse(plan=plan))

    async def drain(self) -> None:
        """Sends a Drain."""
        await self._send(worker_pb2.AttachResponse(drain=worker_pb2.Drain()))

    async def _send(self, response: worker_pb2.AttachResponse) -> None:
        await self._context.write(response)

    async def serve(self, requests: AsyncIterator[worker_pb2.AttachRequest]) -> None:
        """Collects what the worker sends until either side ends the stream."""
        collecting = asyncio.create_task(self._collect(requests))
        closing = asyncio.create_task(self.closed.wait())
        await asyncio.wait({collecting, closing}, return_when=asyncio.FIRST_COMPLETED)
        for task in (collecting, closing):
            task.cancel()
        await asyncio.gather(collecting, closing, return_exceptions=True)
        self._requests.put_nowait(None)

    async def _collect(self, requests: AsyncIterator[worker_pb2.AttachRequest]) -> None:
        async for request in requests:
            self._requests.put_nowait(request)


Context = grpc.aio.ServicerContext[worker_pb2.AttachRequest, worker_pb2.AttachResponse]


class FakeScheduler(worker_pb2_grpc.WorkerServiceServicer):
    """Hands each new stream to the test."""

    def __init__(self) -> None:
        self.address = ""
        self.refusal: str | None = None
        """When set, every hello is refused with it for good."""
        self._attachments: asyncio.Queue[Attachment] = asyncio.Queue()

    async def attached(self, patience_s: float = PATIENCE_S) -> tuple[Attachment, worker_pb2.Hello]:
        """The next stream and the hello it began with."""
        async with asyncio.timeout(patience_s):
            attachment = await self._attachments.get()
        request = await attachment.receive()
        assert request is not None
        assert request.WhichOneof("message") == "hello"
        return attachment, request.hello

    async def Attach(  # noqa: N802  (the name in the contract)
        self, requests: AsyncIterator[worker_pb2.AttachRequest], context: Context
    ) -> None:
        """The service's one method."""
        if self.refusal is not None:
            await anext(requests)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refusal)
        attachment = Attachment(context)
        self._attachments.put_nowait(attachment)
        await attachment.serve(requests)


@asynccontextmanager
async def fake_scheduler(port: int = 0, trust: Trust = NO_TRUST) -> AsyncIterator[FakeScheduler]:
    """Runs one; port 0 is any free one."""
    scheduler = FakeScheduler()
    server = grpc.aio.server(interceptors=interceptors(trust))
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(scheduler, server)
    scheduler.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield scheduler
    finally:
        await server.stop(0)
