"""The real transport process between a fake executor (a socketpair) and a fake scheduler (gRPC)."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from protos.quire.v1 import worker_pb2
from protos.trust import Trust
from tests.worker.fake_scheduler import PATIENCE_S, FakeScheduler, fake_scheduler
from worker import pipe, wire
from worker.pipe import END, LOST, MARK, AsyncPipe, PipeClosedError, pace_frame
from worker.plans import Welcome

HELLO = worker_pb2.AttachRequest(hello=worker_pb2.Hello(worker_id="w", pid=7))


PARENT = (
    sys.executable,
    "-c",
    "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], close_fds=False))",
)


def result_frame(epoch: int, step_id: int) -> bytes:
    result = worker_pb2.StepResult(epoch=epoch, step_id=step_id)
    return worker_pb2.AttachRequest(result=result).SerializeToString()


@dataclass
class FakeExecutor:
    """The executor's end of the link, and the link's process."""

    pipe: AsyncPipe
    process: asyncio.subprocess.Process

    async def welcomed(self) -> int:
        """Waits for a Welcome, answers it as an executor does, returns its epoch."""
        message = wire.parse_response(await self.receive())
        assert isinstance(message, Welcome)
        await self.pipe.send(MARK)
        return message.epoch

    async def broken(self) -> None:
        """Waits for the end of a stream, answers it as an executor does."""
        assert await self.receive() == MARK
        await self.pipe.send(MARK)

    async def receive(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.pipe.receive()

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@asynccontextmanager
async def running_link(
    scheduler: str,
    follower: socket.socket | None = None,
    patience_s: float | None = None,
    *,
    has_loaded: bool = True,
) -> AsyncIterator[FakeExecutor]:
    ours, theirs = socket.socketpair()
    with theirs:
        fds = [theirs.fileno()]
        command = [sys.executable, "-m", "worker.link", "--scheduler", scheduler]
        command += ["--fd", str(fds[0])]
        if follower is not None:
            fds.append(follower.fileno())
            command += ["--follower-fd", str(fds[1])]
        if patience_s is not None:
            command += ["--patience-s", str(patience_s)]
        if follower is not None or patience_s is not None:
            # It may end the process that started it: that must not be this one.
            command = [*PARENT, *command]
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=fds, stderr=subprocess.PIPE
        )
    pipe = await AsyncPipe.open(ours)
    try:
        if has_loaded:
            await pipe.send(HELLO.SerializeToString())
        yield FakeExecutor(pipe, process)
    finally:
        await pipe.close()
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_frames_pass_both_ways_untouched(scheduler: FakeScheduler) -> None:
    async with running_link(scheduler.address) as executor:
        stream, hello = await scheduler.attached()
        assert (hello.worker_id, hello.pid) == ("w", 7)
        await stream.welcome(41)
        assert await executor.welcomed() == 41
        for step in range(1, 50):
            sent = worker_pb2.BatchPlan(epoch=41, step_id=step, retire_slot=bytes(4 * step))
            await stream.plan(sent)
            frame = await executor.receive()
            assert worker_pb2.AttachResponse.FromString(frame).plan == sent
            await executor.pipe.send(result_frame(41, step))
            assert (await stream.result()).step_id == step


async def test_a_broken_stream_is_dialled_again_and_stale_frames_stay_behind(
    scheduler: FakeScheduler,
) -> None:
    async with running_link(scheduler.address) as executor:
        for epoch in (1, 2, 3):
            stream, hello = await scheduler.attached()
            assert hello.worker_id == "w"
            # Between streams, and until the executor has seen the Welcome, its frames are stale.
            await executor.pipe.send(result_frame(epoch - 1, 98))
            await stream.welcome(epoch)
            message = wire.parse_response(await executor.receive())
            assert message == Welcome(epoch)
            await executor.pipe.send(result_frame(epoch - 1, 99))
            await executor.pipe.send(MARK)
            await executor.pipe.send(result_frame(epoch, 1))
            first = await stream.result()
            assert (first.epoch, first.step_id) == (epoch, 1)
            stream.closed.set()
            await executor.broken()


async def test_the_newest_hello_opens_the_next_stream(scheduler: FakeScheduler) -> None:
    async with running_link(scheduler.address) as executor:
        stream, hello = await scheduler.attached()
        assert hello.named_block == b""
        await stream.welcome(1)
        await executor.welcomed()
        stream.closed.set()
        assert await executor.receive() == MARK
        again = worker_pb2.Hello(worker_id="w", named_block=bytes(4))
        frame = worker_pb2.AttachRequest(hello=again).SerializeToString()
        await executor.pipe.send(pipe.HELLO + frame)
        await executor.pipe.send(MARK)
        _, hello = await scheduler.attached()
        assert hello == again


async def test_an_executor_that_is_stuck_takes_no_more_work(scheduler: FakeScheduler) -> None:
    async with running_link(scheduler.address) as executor:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await executor.receive()
        stream.closed.set()
        assert await executor.receive() == MARK
        await executor.pipe.send(MARK)  # for epoch 1 alone
        with pytest.raises(TimeoutError):
            await scheduler.attached(patience_s=0.5)
        await executor.pipe.send(MARK)
        await scheduler.attached()


async def test_an_executor_that_never_comes_out_of_a_step_is_ended(
    scheduler: FakeScheduler,
) -> None:
    async with running_link(scheduler.address, patience_s=0.5) as executor:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await executor.welcomed()
        stream.closed.set()
        assert await executor.receive() == MARK
        assert await executor.exit_code() == -signal.SIGKILL
        assert executor.process.stderr is not None
        said = (await executor.process.stderr.read()).decode()
        assert "has not come out of a step 0.5 s after its stream ended; ending it" in said


async def test_an_executor_of_long_steps_gets_longer(scheduler: FakeScheduler) -> None:
    async with running_link(scheduler.address, patience_s=0.1) as executor:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await executor.welcomed()
        await executor.pipe.send(pace_frame(0.15))
        await executor.pipe.send(pace_frame(0.05))  # the longest counts
        await executor.pipe.send(result_frame(1, 1))
        assert (await stream.result()).step_id == 1, "the scheduler is not told of paces"
        stream.closed.set()
        assert await executor.receive() == MARK
        assert await executor.exit_code() == -signal.SIGKILL
        assert executor.process.stderr is not None
        said = (await executor.process.stderr.read()).decode()
        assert "has not come out of a step 1.5 s after its stream ended; ending it" in said


async def test_an_executor_without_a_scheduler_is_left_alone(free_port: int) -> None:
    async with running_link(f"127.0.0.1:{free_port}", patience_s=0.1) as executor:
        assert executor.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            await executor.process.stderr.readline()  # it has dialled in vain
        async with fake_scheduler(free_port) as scheduler:
            stream, _ = await scheduler.attached()
            await stream.welcome(1)
            assert await executor.welcomed() == 1


async def test_an_executor_that_asks_to_leave_is_told_when(scheduler: FakeScheduler) -> None:
    async with running_link(scheduler.address) as executor:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await executor.welcomed()
        await executor.pipe.send(END)
        assert await executor.receive() == END
        await executor.pipe.send(result_frame(1, 1))
        assert (await stream.result()).step_id == 1


async def test_a_stream_that_ends_once_it_leaves_is_not_dialled_again(
    scheduler: FakeScheduler,
) -> None:
    async with running_link(scheduler.address) as executor:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await executor.welcomed()
        await executor.pipe.send(END)
        assert await executor.receive() == END
        stream.closed.set()
        with pytest.raises(TimeoutError):
            await scheduler.attached(patience_s=1.0)  # the first delay is a tenth of that
        await executor.pipe.close()
        assert await executor.exit_code() == 0
        assert executor.process.stderr is not None
        assert await executor.process.stderr.read() == b""


async def test_a_mark_for_an_older_stream_opens_nothing(scheduler: FakeScheduler) -> None:
    async with running_link(scheduler.address) as executor:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await executor.receive()
        stream.closed.set()
        assert await executor.receive() == MARK
        await executor.pipe.send(MARK)  # for epoch 1
        await executor.pipe.send(MARK)  # for its end
        stream, _ = await scheduler.attached()
        await stream.welcome(2)
        await executor.receive()
        await executor.pipe.send(result_frame(1, 1))
        await executor.pipe.send(MARK)  # for epoch 2
        await executor.pipe.send(result_frame(2, 1))
        assert (await stream.result()).epoch == 2


async def test_it_keeps_dialling_until_a_scheduler_is_there(free_port: int) -> None:
    async with running_link(f"127.0.0.1:{free_port}") as executor:
        assert executor.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            said = (await executor.process.stderr.readline()).decode()
        assert said.endswith(
            f"no connection to the scheduler at 127.0.0.1:{free_port}: nobody listens there; "
            "dialling again\n"
        )
        async with fake_scheduler(free_port) as scheduler:
            stream, _ = await scheduler.attached()
            await stream.welcome(1)
            assert await executor.welcomed() == 1


async def test_a_worker_that_is_not_let_in_hears_so_before_it_has_loaded() -> None:
    async with (
        fake_scheduler(trust=Trust(("the-token-of-this-month",))) as scheduler,
        running_link(scheduler.address, has_loaded=False) as executor,
    ):
        assert executor.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            said = (await executor.process.stderr.readline()).decode()
        assert f"warning no connection to the scheduler at {scheduler.address}: the cluster" in said
        assert "the cluster token is missing or wrong; start this process with" in said


async def test_a_refusal_ends_it_with_the_reason(scheduler: FakeScheduler) -> None:
    scheduler.refusal = "protocol 9; this scheduler speaks 1"
    async with running_link(scheduler.address) as executor:
        assert await executor.exit_code() == 2
        assert executor.process.stderr is not None
        assert (await executor.process.stderr.read()).decode() == (
            f"error: the scheduler at {scheduler.address} refused this worker: "
            "protocol 9; this scheduler speaks 1\n"
        )
        with pytest.raises(PipeClosedError):
            await executor.receive()


async def test_the_executors_end_ends_the_stream_after_its_last_result(
    scheduler: FakeScheduler,
) -> None:
    async with running_link(scheduler.address) as executor:
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        await executor.welcomed()
        for step in range(1, 20):
            await executor.pipe.send(result_frame(1, step))
        await executor.pipe.close()
        assert [(await stream.result()).step_id for _ in range(19)] == list(range(1, 20))
        assert await stream.receive() is None
        assert await executor.exit_code() == 0


async def test_it_leaves_with_an_executor_that_never_reached_a_scheduler(free_port: int) -> None:
    async with running_link(f"127.0.0.1:{free_port}") as executor:
        await executor.pipe.close()
        assert await executor.exit_code() == 0


async def test_signals_are_the_executors_business(scheduler: FakeScheduler) -> None:
    async with running_link(scheduler.address) as executor:
        stream, _ = await scheduler.attached()
        executor.process.send_signal(signal.SIGTERM)
        executor.process.send_signal(signal.SIGINT)
        await stream.welcome(1)
        assert await executor.welcomed() == 1
        assert executor.process.returncode is None


def test_it_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, worker.link; print({'torch', 'numpy', 'google.protobuf'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


@asynccontextmanager
async def leading_link(scheduler: str) -> AsyncIterator[tuple[FakeExecutor, AsyncPipe]]:
    """Rank 0's, and the end that the other rank's link has."""
    ours, theirs = socket.socketpair()
    with theirs:
        running = running_link(scheduler, theirs)
        executor = await running.__aenter__()
    follower = await AsyncPipe.open(ours)
    try:
        yield executor, follower
    finally:
        await follower.close()
        await running.__aexit__(None, None, None)


async def test_a_message_waits_for_the_rank_that_lacks_it(scheduler: FakeScheduler) -> None:
    async with leading_link(scheduler.address) as (executor, follower):
        stream, _ = await scheduler.attached()
        await stream.welcome(1)
        welcome = worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=1))
        name = welcome.SerializeToString()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await executor.pipe.receive()
        await follower.send(name)
        assert await follower.receive() == name
        assert await executor.welcomed() == 1


async def test_a_lost_sibling_ends_it_once_its_executor_has_gone(scheduler: FakeScheduler) -> None:
    async with leading_link(scheduler.address) as (executor, follower):
        await scheduler.attached()
        await follower.close()
        with pytest.raises(PipeClosedError):
            await executor.receive()
        await executor.pipe.close()
        assert await executor.exit_code() == LOST


async def test_a_lost_sibling_ends_an_executor_that_is_stuck(scheduler: FakeScheduler) -> None:
    async with leading_link(scheduler.address) as (executor, follower):
        await scheduler.attached()
        await follower.close()
        assert await executor.exit_code() == -signal.SIGKILL
