"""A scheduler that answers at once: a real gRPC peer for a router, with nothing behind it.

Each sequence gets the tokens of a text over and over, one in each step, all sequences of a router
in one frame, as the real one sends them. Steps come at a pace, or as fast as the router takes them.

    python -m bench.instant_scheduler --model DIRECTORY --steps-per-s 40
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer
import uvloop
from tokenizers import Tokenizer

from protos.quire.v1 import sampling_pb2, scheduler_pb2, scheduler_pb2_grpc, worker_pb2

NAME = "instant"
MAX_MODEL_LEN = 1 << 24
"""No stream of a benchmark comes to its end by itself."""

TEXT = (
    "A router speaks to clients, a scheduler decides, and workers compute. Every token that a "
    "worker samples travels once through the scheduler to the router, becomes text there, and "
    "leaves for its client as an event: 1 of 256 in the same step. Größe, 東京 and 🙂 take more "
    "than one token, and their text waits until it is whole.\n\n"
)

Context = grpc.aio.ServicerContext[scheduler_pb2.ConnectRequest, scheduler_pb2.ConnectResponse]


class InstantScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Serves one router."""

    def __init__(self, model: Path, steps_per_s: float | None) -> None:
        """`steps_per_s` None: the next step as soon as gRPC has taken the last one."""
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokens = np.array(tokenizer.encode(TEXT, add_special_tokens=False).ids, "<i4")
        self._status = scheduler_pb2.CellStatus(
            model=worker_pb2.ModelCard(
                name=NAME,
                vocab_size=tokenizer.get_vocab_size(),
                max_model_len=MAX_MODEL_LEN,
            ),
        )
        self._step_s = 1 / steps_per_s if steps_per_s else 0.0
        self._left: dict[int, int] = {}
        """Output tokens still to come, by sequence."""
        self._num_steps = 0

    async def Connect(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[scheduler_pb2.ConnectRequest], context: Context
    ) -> None:
        """One router; a lost one ends its sequences."""
        self._left.clear()
        await anext(aiter(requests))  # its hello
        welcome = scheduler_pb2.RouterWelcome(incarnation=1)
        await context.write(scheduler_pb2.ConnectResponse(welcome=welcome))
        listening = asyncio.create_task(self._listen(requests))
        try:
            await self._step(context)
        finally:
            listening.cancel()

    async def _listen(self, requests: AsyncIterator[scheduler_pb2.ConnectRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    first, count = request.submit.sequence_id, request.submit.num_samples
                    for sequence_id in range(first, first + count):
                        self._left[sequence_id] = request.submit.max_tokens
                case "abort":
                    for sequence_id in request.abort.sequence_id:
                        self._left.pop(sequence_id, None)

    async def _step(self, context: Context) -> None:
        """Step after step, and a status a second."""
        now = asyncio.get_running_loop().time
        next_step_at = next_status_at = now()
        while True:
            if now() >= next_status_at:
                next_status_at = now() + 1
                await context.write(scheduler_pb2.ConnectResponse(status=self._cell_status()))
            if not self._left:
                await asyncio.sleep(0.001)
                next_step_at = now()
                continue
            await context.write(scheduler_pb2.ConnectResponse(frame=self._frame()))
            # A step that is late is not made up for: two in a row would travel as one event.
            next_step_at = max(next_step_at + self._step_s, now())
            await asyncio.sleep(next_step_at - now())

    def _frame(self) -> scheduler_pb2.Frame:
        self._num_steps += 1
        sequence_ids = np.fromiter(self._left, "<u4", len(self._left))
        token_ids = self._tokens[(sequence_ids * 17 + self._num_steps) % len(self._tokens)]
        frame = scheduler_pb2.Frame(
            sequence_id=sequence_ids.tobytes(), token_id=token_ids.tobytes()
        )
        for sequence_id in self._left:
            self._left[sequence_id] -= 1
        for sequence_id in [each for each, left in self._left.items() if not left]:
            del self._left[sequence_id]
            frame.finished.add(sequence_id=sequence_id, reason=sampling_pb2.FINISH_REASON_LENGTH)
        return frame

    def _cell_status(self) -> scheduler_pb2.CellStatus:
        replica = scheduler_pb2.ReplicaStatus(
            replica_id="instant",
            epoch=1,
            num_blocks_total=MAX_MODEL_LEN,
            block_size=16,
            num_generated_tokens=self._num_steps,
        )
        del self._status.replicas[:]
        self._status.replicas.append(replica)
        return self._status


async def serve(model: Path, steps_per_s: float | None) -> None:
    """Prints its address, and serves until it is ended."""
    server = grpc.aio.server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(
        InstantScheduler(model, steps_per_s), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(grace=None)


def main(
    model: Annotated[Path, typer.Option(help="Directory of the model that it seems to serve.")],
    steps_per_s: Annotated[
        float | None, typer.Option(help="Pace; as fast as it is read without it.")
    ] = None,
) -> None:
    """Answers one router."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(model, steps_per_s))


if __name__ == "__main__":
    typer.run(main)
