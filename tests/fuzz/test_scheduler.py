"""Whatever a peer sends, the scheduler answers or ends that peer's stream, and stays consistent."""

import asyncio
from typing import cast

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from protos.quire.v1 import scheduler_pb2, worker_pb2
from scheduler.cell import Cell
from scheduler.core.config import CoreConfig
from scheduler.core.scheduler import Scheduler
from scheduler.service import PROTOCOL_VERSION, RankSession, RouterSession
from scheduler.stream import Context, Stream
from scheduler.wire.columns import Malformed
from tests.fuzz.messages import FUZZING, frames
from tests.scheduler.peers import GREEDY, MODEL, column

HELLO = worker_pb2.AttachRequest(
    hello=worker_pb2.Hello(
        protocol_version=PROTOCOL_VERSION,
        worker_id="w",
        replica_id="r",
        world_size=1,
        model=MODEL,
        num_blocks=12,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=8,
    )
)
ROUTER_HELLO = scheduler_pb2.ConnectRequest(
    hello=scheduler_pb2.RouterHello(protocol_version=PROTOCOL_VERSION, router_id="a")
)
SUBMIT = scheduler_pb2.ConnectRequest(
    submit=scheduler_pb2.Submit(
        sequence_id=1,
        num_samples=2,
        token_id=column(1, 2, 3, 4, 5),
        num_prompt_tokens=5,
        max_tokens=4,
        sampling=GREEDY,
    )
)


class Silence:
    """A peer that is heard through `receive` alone."""

    def peer(self) -> str:
        return "nobody"


class Outbox(Stream):
    """A stream that keeps the plans it is to send."""

    def __init__(self) -> None:
        super().__init__(cast(Context, Silence()), max_outbox_bytes=2**20)
        self.plans: list[worker_pb2.BatchPlan] = []

    def send(self, message: bytes) -> None:
        response = worker_pb2.AttachResponse.FromString(message)
        if response.WhichOneof("message") == "plan":
            self.plans.append(response.plan)
        super().send(message)


def open_cell() -> Cell:
    return Cell(Scheduler(CoreConfig(hash_seed=b"fuzz", max_queued=8)), step_timeout_s=60.0)


async def say(session: RouterSession | RankSession, frame: bytes) -> bool:
    """Whether the stream goes on after it."""
    try:
        await session.receive(frame)
    except Malformed:
        return False
    return True


RESULT = worker_pb2.AttachRequest(
    result=worker_pb2.StepResult(
        epoch=1,
        step_id=1,
        slot=column(0, 1),
        generation=column(1, 1),
        token_id=column(7, 7),
        finish=bytes(2),
    )
)
"""True of both samples of SUBMIT, but for its epoch and step."""


def timely(frame: bytes, plan: worker_pb2.BatchPlan) -> bytes:
    """Epoch 1 and step 1 of a result become those of the plan."""
    try:
        message = worker_pb2.AttachRequest.FromString(frame)
    except DecodeError:
        return frame
    if message.result.epoch == 1:
        message.result.epoch = plan.epoch
    if message.result.step_id == 1:
        message.result.step_id = plan.step_id
    return message.SerializeToString()


@FUZZING
@given(
    said=st.lists(frames(scheduler_pb2.ConnectRequest, SUBMIT, ROUTER_HELLO), max_size=8),
    greets=st.booleans(),
)
def test_any_router(said: list[bytes], greets: bool) -> None:
    async def scenario() -> None:
        cell = open_cell()
        worker = RankSession(cell, Outbox())
        await worker.receive(HELLO.SerializeToString())
        session = RouterSession(cell, Stream(cast(Context, Silence()), max_outbox_bytes=2**20))
        for frame in [ROUTER_HELLO.SerializeToString()] * greets + said:
            if not await say(session, frame):
                break
            cell.check_integrity()
            await asyncio.sleep(0)  # plans are made
        session.end()
        worker.end()
        is_at_rest(cell)

    asyncio.run(scenario())


@FUZZING
@given(
    said=st.lists(frames(worker_pb2.AttachRequest, HELLO), max_size=3),
    results=st.lists(frames(worker_pb2.AttachRequest, RESULT), max_size=4),
    greets=st.booleans(),
)
def test_any_worker(said: list[bytes], results: list[bytes], greets: bool) -> None:
    async def scenario() -> None:
        cell = open_cell()
        cell.model_known.set()
        router = RouterSession(cell, Stream(cast(Context, Silence()), max_outbox_bytes=2**20))
        await router.receive(ROUTER_HELLO.SerializeToString())
        outbox = Outbox()
        session = RankSession(cell, outbox)
        goes_on = True
        for frame in [HELLO.SerializeToString()] * greets + said:
            goes_on = goes_on and await say(session, frame)
        if goes_on and cell.model is not None:
            await router.receive(SUBMIT.SerializeToString())
        for frame in results:
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # plans are made
            if not (goes_on and outbox.plans):
                break
            goes_on = await say(session, timely(frame, outbox.plans.pop(0)))
            cell.check_integrity()
        session.end()
        router.end()
        is_at_rest(cell)

    asyncio.run(scenario())


def is_at_rest(cell: Cell) -> None:
    cell.check_integrity()
    assert cell.metrics.num_integrity_failures == 0
    assert not cell.view().replicas
    assert cell.state().num_running + cell.state().num_waiting == 0
