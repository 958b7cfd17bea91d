"""Routers and workers for tests: real streams over a real socket, and nothing behind them.

A fake rank executes plans as the contract says, without a model: the token at position p of any
sequence is `token_at(p)`, so what a replay must continue with is known in advance.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

import grpc
import numpy as np

from protos.quire.v1 import sampling_pb2, scheduler_pb2, worker_pb2

T = TypeVar("T")

TIMEOUT_S = 20.0
VOCAB_SIZE = 1000
MAX_MODEL_LEN = 128
MODEL = worker_pb2.ModelCard(
    name="tiny", revision="r1", max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE, dtype="float32"
)
GREEDY = sampling_pb2.SamplingParams(top_p=1.0, repetition_penalty=1.0)


def token_at(position: int) -> int:
    return 500 + position


def vector_of(token_id: bytes) -> bytes:
    """A fake rank's vector of a prompt: how many tokens, and their sum."""
    return np.array([len(token_id) / 4, sum(ints(token_id))], "<f4").tobytes()


def column(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def ints(data: bytes) -> list[int]:
    values: list[int] = np.frombuffer(data, "<i4").tolist()
    return values


async def within_time(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(TIMEOUT_S):
        return await awaitable


async def eventually(condition: Callable[[], bool]) -> None:
    """Returns as soon as the condition holds; fails if it never does."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # conditions are not all events
            await asyncio.sleep(0.005)


class Peer:
    """One stream to the scheduler, in bytes."""

    method: str
    opened: ClassVar[list["Peer"]] = []

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.http2.bdp_probe", 0),  # a window that does not grow, so that it can fill
            ],
        )
        self.call: Any = self._channel.stream_stream(self.method)()
        self.opened.append(self)

    async def write(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        await within_time(self.call.write(data))

    async def read(self) -> bytes:
        data = await within_time(self.call.read())
        assert isinstance(data, bytes), await self.end()
        return data

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the scheduler ended the stream; what it sent before is read and dropped."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await within_time(self.call.read()) is not grpc.aio.EOF:
                pass
        code: grpc.StatusCode = await within_time(self.call.code())
        return code, await within_time(self.call.details())

    async def hang_up(self) -> None:
        self.call.cancel()
        await self._channel.close()

    @classmethod
    async def hang_up_all(cls) -> None:
        while cls.opened:
            await cls.opened.pop().hang_up()


class FakeRouter(Peer):
    method = "/quire.v1.SchedulerService/Connect"

    def __init__(self, address: str, router_id: str = "router") -> None:
        super().__init__(address)
        self.router_id = router_id
        self.incarnation = 0
        self.statuses: list[scheduler_pb2.CellStatus] = []
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, scheduler_pb2.Finished] = {}

    @classmethod
    async def connected(cls, address: str, router_id: str = "router") -> "FakeRouter":
        router = cls(address, router_id)
        await router.hello()
        router.incarnation = (await router.receive()).welcome.incarnation
        router.statuses.append((await router.receive()).status)
        return router

    async def hello(self, version: int = 1) -> None:
        hello = scheduler_pb2.RouterHello(protocol_version=version, router_id=self.router_id)
        await self.write(scheduler_pb2.ConnectRequest(hello=hello))

    async def submit(self, sequence_id: int, tokens: list[int], **fields: Any) -> None:
        submit = scheduler_pb2.Submit(
            **{
                "sequence_id": sequence_id,
                "num_samples": 1,
                "token_id": column(*tokens),
                "num_prompt_tokens": len(tokens),
                "max_tokens": 4,
                "sampling": GREEDY,
                **fields,
            }
        )
        await self.write(scheduler_pb2.ConnectRequest(submit=submit))

    async def abort(self, *sequence_ids: int) -> None:
        abort = scheduler_pb2.Abort(sequence_id=sequence_ids)
        await self.write(scheduler_pb2.ConnectRequest(abort=abort))

    async def finish(self, sequence_id: int, num_tokens: int) -> None:
        finish = scheduler_pb2.Finish(sequence_id=sequence_id, num_tokens=num_tokens)
        await self.write(scheduler_pb2.ConnectRequest(finish=finish))

    async def leave(self) -> None:
        leaving = scheduler_pb2.RouterLeaving()
        await self.write(scheduler_pb2.ConnectRequest(leaving=leaving))

    async def receive(self) -> scheduler_pb2.ConnectResponse:
        return scheduler_pb2.ConnectResponse.FromString(await self.read())

    async def frame(self) -> scheduler_pb2.Frame:
        """The next frame, entered into `tokens` and `finished`."""
        while True:
            message = await self.receive()
            if message.HasField("status"):
                self.statuses.append(message.status)
                continue
            assert message.HasField("frame"), message
            frame = message.frame
            ids, tokens = ints(frame.sequence_id), ints(frame.token_id)
            for sequence_id, token in zip(ids, tokens, strict=True):
                self.tokens.setdefault(sequence_id, []).append(token)
            for end in frame.finished:
                assert end.sequence_id not in self.finished, "a sequence ended twice"
                self.finished[end.sequence_id] = end
            return frame

    async def refusal(self) -> scheduler_pb2.Refusal:
        while (message := await self.receive()).HasField("status"):
            self.statuses.append(message.status)
        assert message.HasField("refusal"), message
        return message.refusal

    async def status(self) -> scheduler_pb2.CellStatus:
        message = await self.receive()
        assert message.HasField("status"), message
        return message.status

    async def until_finished(self, *sequence_ids: int) -> None:
        while not self.finished.keys() >= set(sequence_ids):
            await self.frame()


class FakeRank(Peer):
    method = "/quire.v1.WorkerService/Attach"

    def __init__(self, address: str, **fields: Any) -> None:
        super().__init__(address)
        self.hello_message = worker_pb2.Hello(
            **{
                "protocol_version": 1,
                "worker_id": "worker",
                "replica_id": "replica",
                "rank": 0,
                "world_size": 1,
                "model": MODEL,
                "num_blocks": 64,
                "block_size": 16,
                "max_num_seqs": 8,
                "max_num_batched_tokens": 64,
                "pid": 1234,
                "device": "fake",
                **fields,
            }
        )
        self.epoch = 0
        self.go = asyncio.Event()
        self.go.set()
        self.admissions: list[worker_pb2.Admission] = []
        self._tenants: dict[int, worker_pb2.Admission] = {}
        self._known: dict[int, int] = {}
        self._decode: list[int] = []

    @classmethod
    async def dialled(cls, address: str, **fields: Any) -> "FakeRank":
        rank = cls(address, **fields)
        await rank.write(worker_pb2.AttachRequest(hello=rank.hello_message))
        return rank

    @classmethod
    async def attached(cls, address: str, **fields: Any) -> "FakeRank":
        rank = await cls.dialled(address, **fields)
        await rank.welcome()
        return rank

    async def receive(self) -> worker_pb2.AttachResponse:
        return worker_pb2.AttachResponse.FromString(await self.read())

    async def welcome(self) -> int:
        message = await self.receive()
        assert message.HasField("welcome"), message
        self.epoch = message.welcome.epoch
        return self.epoch

    async def plan(self) -> worker_pb2.BatchPlan:
        message = await self.receive()
        assert message.HasField("plan"), message
        return message.plan

    async def answer(self, plan: worker_pb2.BatchPlan, **fields: Any) -> None:
        """Executes the plan and sends its result, with some fields replaced."""
        result = self.execute(plan)
        for name, value in fields.items():
            if isinstance(value, int | bytes):
                setattr(result, name, value)
            else:
                getattr(result, name).CopyFrom(value)
        await self.send_result(result)

    async def send_result(self, result: worker_pb2.StepResult) -> None:
        await self.write(worker_pb2.AttachRequest(result=result))

    async def leave(self) -> None:
        """Says farewell, as an executor that was told to stop."""
        await self.write(worker_pb2.AttachRequest(farewell=worker_pb2.Farewell()))
        await within_time(self.call.done_writing())

    async def break_off(self) -> None:
        """Half-closes without a word, as the link of an executor that has crashed."""
        await within_time(self.call.done_writing())

    async def work(self) -> None:
        """Executes every plan, while `go` is set, until told to leave; then hangs up."""
        while (message := await self.receive()).HasField("plan"):
            await self.go.wait()
            await self.answer(message.plan)
        assert message.HasField("drain"), message
        await self.hang_up()

    def execute(self, plan: worker_pb2.BatchPlan) -> worker_pb2.StepResult:
        for slot in ints(plan.retire_slot):
            del self._tenants[slot]
        for admission in plan.admit:
            assert admission.slot not in self._tenants
            self.admissions.append(admission)
            self._tenants[admission.slot] = admission
            self._known[admission.slot] = len(admission.token_id) // 4
        if plan.HasField("decode_slot"):
            self._decode = ints(plan.decode_slot)
        sampling = list(self._decode)
        chunks = zip(
            ints(plan.chunk_slot), ints(plan.chunk_start), ints(plan.chunk_length), strict=True
        )
        sampling += [slot for slot, start, length in chunks if start + length == self._known[slot]]
        embedded = [slot for slot in sampling if self._wants_vector(slot)]
        rows = [slot for slot in sampling if self._is_live(slot)]
        tokens = [token_at(self._known[slot]) for slot in rows]
        for slot in rows:
            self._known[slot] += 1
        return worker_pb2.StepResult(
            epoch=plan.epoch,
            step_id=plan.step_id,
            slot=column(*rows),
            generation=column(*(self._tenants[slot].generation for slot in rows)),
            token_id=column(*tokens),
            finish=bytes(0 if self._is_live(slot) else 2 for slot in rows),
            timing=worker_pb2.StepTiming(wait_us=5, prepare_us=10, forward_us=100, sample_us=10),
            vectors=worker_pb2.VectorColumns(
                slot=column(*embedded),
                generation=column(*(self._tenants[slot].generation for slot in embedded)),
                finish=bytes(1 for _ in embedded),
                value=b"".join(vector_of(self._tenants[slot].token_id) for slot in embedded),
            ),
        )

    def _wants_vector(self, slot: int) -> bool:
        return self._tenants[slot].max_total_tokens == self._tenants[slot].num_prompt_tokens

    def _is_live(self, slot: int) -> bool:
        return self._known[slot] < self._tenants[slot].max_total_tokens
