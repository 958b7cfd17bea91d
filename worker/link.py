"""The transport child: one Attach stream to the scheduler, kept alive, in a process of its own.

gRPC beside a busy Python thread answers in milliseconds, because both want the interpreter lock.
So the executor owns the device and this process owns the network; serialized messages pass through
untouched in both directions, and only the executor knows what they mean.

    scheduler ◀─ Attach stream (grpc.aio, uvloop) ─▶ link ◀─ frames over a socketpair ─▶ executor

The executor's first frame is its Hello: it opens every stream, until the executor gives a newer one
(what its blocks hold changes). Until it comes the executor loads, perhaps for minutes: meanwhile
the link asks whether the scheduler would let it in, and warns if not. When a stream breaks the link
dials again, with backoff, once the executor has answered that it is there: one that is stuck in a
step takes no more work. The scheduler has fenced it by then, and nobody else can tell it from one
that computes: so the link ends an executor that has not answered for long (`--patience-s`, or ten
times the longest step that it has told of, up to ten minutes). What the executor produced before it
saw the new stream's Welcome is stale: it answers each Welcome with a mark, and the link drops
everything before that.

The ranks of a replica agree on what their executors see (`worker.lockstep`), over sockets that the
executors have joined before. They end as one: a link that loses a sibling gives its executor a
moment to go, and then ends it, wherever it is stuck; nobody could finish its collective any more.

While its loop turns it beats (`worker.beats`): an executor that hears nothing ends it.

The link outlives nothing: when the executor goes, the link ends the stream and exits, so that the
scheduler learns of it at once. Exit codes: 0 the executor has gone, 2 the scheduler refused the
hello for good (FAILED_PRECONDITION), 3 a sibling was lost, 4 the executor was stuck.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import grpc.aio
import uvloop

from protos import flags
from protos.backoff import backoff
from protos.flag import FlagError
from protos.outage import Outage
from protos.trust import Trust
from worker import logs
from worker.attach_stream import (
    RefusedError,
    Stream,
    half_close,
    knock,
    open_stream,
    why_ended,
    write,
)
from worker.beats import beat
from worker.lockstep import Follower, Leader, Lockstep, Message
from worker.pipe import (
    END,
    HELLO,
    LOST,
    MARK,
    PACE,
    REFUSED,
    STUCK,
    AsyncPipe,
    PipeClosedError,
    said_pace,
)

log = logging.getLogger(__name__)

_FAREWELL_S = 1.0
_LAST_WORDS_S = 2.0
"""What an executor gets to go by itself when a sibling is lost."""
_STEPS_WAITED = 10
"""Of the longest that there was, for one that does not end."""
_MAX_PATIENCE_S = 600.0
"""Which such steps do not stretch further: one of them may have been stopped half-way."""


class LostSiblingError(Exception):
    """Another rank of this replica has gone."""


class StuckExecutorError(Exception):
    """The executor does not answer: it waits for a step that does not end."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(waited_s)
        self.waited_s = waited_s


class Link:
    """Moves frames between the executor and whichever stream is open.

    Args:
        pipe: to the executor.
        scheduler: address to dial.
        siblings: to the links of the ranks that this one agrees with.
        leads: this is rank 0's.
        trust: what the scheduler knows this worker by.
        patience_s: in which the executor answers that it has seen the end of a stream, if its steps
            are short.
    """

    def __init__(
        self,
        pipe: AsyncPipe,
        scheduler: str,
        siblings: Sequence[AsyncPipe],
        *,
        leads: bool,
        trust: Trust,
        patience_s: float,
    ) -> None:
        self._pipe = pipe
        self._trust = trust
        self._scheduler = scheduler
        self._siblings = siblings
        self._patience_s = patience_s
        self._lockstep: Lockstep = (
            Leader([sibling.post for sibling in siblings], self._deliver)
            if leads
            else Follower(siblings[0].post, self._deliver)
        )
        self._hello = b""
        self._outage = Outage(f"the scheduler at {scheduler}")
        self._stream: Stream | None = None
        """Whose Welcome the executor was given last: its results belong there."""
        self._num_asked = 0
        self._num_marks = 0
        self._marked = asyncio.Event()
        """The executor has answered all that it was asked."""
        self._marked.set()

    async def run(self) -> None:
        """Serves until the executor goes.

        Raises:
            RefusedError: the scheduler will never take this worker.
            LostSiblingError: another rank has gone, and this one has not been told to.
            StuckExecutorError: the executor still computes for a stream that ended long ago.
        """
        knocking = asyncio.create_task(self._knock())
        try:
            self._hello = await self._pipe.receive()
        finally:
            knocking.cancel()
            await asyncio.gather(knocking, return_exceptions=True)
        pumping = asyncio.create_task(self._pump_results())
        others = [asyncio.create_task(self._keep_dialling())]
        others += [asyncio.create_task(self._follow(index)) for index in range(len(self._siblings))]
        await asyncio.wait({pumping, *others}, return_when=asyncio.FIRST_COMPLETED)
        if pumping.done():
            await self._say_farewell()
        for task in (pumping, *others):
            task.cancel()
        outcomes = await asyncio.gather(pumping, *others, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, PipeClosedError):
                raise outcome

    async def _knock(self) -> None:
        """Warns if the scheduler would not let this worker in: so far nothing has been loaded."""
        for delay_s in backoff():
            code, reason = await knock(self._trust, self._scheduler)
            if code is grpc.StatusCode.UNAUTHENTICATED:
                self._lament(reason)
            if code is not grpc.StatusCode.UNAVAILABLE:
                return
            await asyncio.sleep(delay_s)

    def _lament(self, reason: str) -> None:
        if line := self._outage.failed(reason, time.monotonic()):
            log.warning("%s", line)

    async def _pump_results(self) -> None:
        """Executor to scheduler; ends with `PipeClosedError` when the executor goes."""
        while True:
            frame = await self._pipe.receive()
            if frame == MARK:
                self._num_marks += 1
                if self._num_marks == self._num_asked:
                    self._marked.set()
            elif frame == END:
                self._lockstep.ask_end()
            elif frame.startswith(HELLO):
                self._hello = frame[len(HELLO) :]
            elif frame.startswith(PACE):
                stretched_s = min(_STEPS_WAITED * said_pace(frame), _MAX_PATIENCE_S)
                self._patience_s = max(self._patience_s, stretched_s)
            elif self._stream is not None and self._marked.is_set():
                await write(self._stream, frame)

    def _deliver(self, message: Message) -> None:
        """Hands the executor what all ranks hold."""
        if message.opens:
            # From its mark on, results go to this stream.
            self._stream = message.stream  # type: ignore[assignment]
            self._ask()
        self._pipe.post(message.data)

    def _ask(self) -> None:
        """The executor owes a mark."""
        self._num_asked += 1
        self._marked.clear()

    async def _follow(self, sibling: int) -> None:
        """What a sibling says; raises `LostSiblingError` when it goes before the end."""
        with contextlib.suppress(PipeClosedError):
            while True:
                self._lockstep.hear(sibling, await self._siblings[sibling].receive())
        if not self._lockstep.has_ended:
            raise LostSiblingError
        await asyncio.Event().wait()  # it was the first to leave, in order

    async def _keep_dialling(self) -> None:
        delays = backoff()
        while True:
            was_welcome, reason = await self._attach()
            if self._lockstep.has_ended:
                await asyncio.Event().wait()  # the executor leaves, and nothing is lost to it
            if was_welcome:
                delays = backoff()
                self._outage.over()
                self._ask()
                self._pipe.post(MARK)
            self._lament(reason)
            await asyncio.sleep(next(delays))
            await self._answered()

    async def _answered(self) -> None:
        """Waits until the executor has answered all that it was asked."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._marked.wait()
        except TimeoutError:
            raise StuckExecutorError(self._patience_s) from None

    async def _attach(self) -> tuple[bool, str]:
        """One stream from hello to its end; returns whether it was welcome, and why it ended."""
        opens = True
        async with open_stream(self._trust, self._scheduler) as stream:
            try:
                await stream.write(self._hello)
                while isinstance(data := await stream.read(), bytes):
                    self._lockstep.take(Message(data, stream, opens))
                    opens = False
                return not opens, "it closed the stream"
            except asyncio.InvalidStateError:
                # The hello came too late: it had ended already.
                return not opens, await why_ended(stream)
            except grpc.aio.AioRpcError:
                return not opens, await why_ended(stream)
            finally:
                if self._stream is stream:
                    self._stream = None

    async def _say_farewell(self) -> None:
        """Half-closes the stream and lets the scheduler end it, so that no result is cut off."""
        if self._stream is not None and not await half_close(self._stream, _FAREWELL_S):
            log.info("the scheduler did not end the stream; leaving")


async def _serve(
    fd: int,
    scheduler: str,
    sibling_fds: Sequence[int],
    *,
    beats_fd: int | None,
    leads: bool,
    trust: Trust,
    patience_s: float,
) -> int:
    executor = os.getppid()
    beating = None if beats_fd is None else asyncio.create_task(beat(beats_fd))
    pipe = await AsyncPipe.open(socket.socket(fileno=fd))
    siblings = [await AsyncPipe.open(socket.socket(fileno=sibling)) for sibling in sibling_fds]
    try:
        link = Link(pipe, scheduler, siblings, leads=leads, trust=trust, patience_s=patience_s)
        await link.run()
    except PipeClosedError:
        return 0
    except RefusedError as error:
        print(f"error: the scheduler at {scheduler} refused this worker: {error}", file=sys.stderr)
        return REFUSED
    except LostSiblingError:
        await _end_executor(pipe, executor)
        return LOST
    except StuckExecutorError as error:
        log.error(
            "the executor has not come out of a step %g s after its stream ended; ending it",
            error.waited_s,
        )
        _kill(executor)
        return STUCK
    finally:
        if beating is not None:
            beating.cancel()
    return 0


async def _end_executor(pipe: AsyncPipe, executor: int) -> None:
    """Lets the executor go by itself, or ends it: another rank is gone, or as good as gone."""
    pipe.end_writing()
    try:
        async with asyncio.timeout(_LAST_WORDS_S):
            with contextlib.suppress(PipeClosedError):
                while True:
                    await pipe.receive()
    except TimeoutError:
        _kill(executor)


def _kill(executor: int) -> None:
    if os.getppid() == executor:  # else it is not there any more
        os.kill(executor, signal.SIGKILL)


def main() -> int:
    """Runs the link; the executor starts it as `python -m worker.link`."""
    parser = argparse.ArgumentParser(prog="python -m worker.link", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="this side of the socketpair")
    parser.add_argument("--beats-fd", type=int, help="a pipe to beat on")
    parser.add_argument("--scheduler", required=True, help="address to dial")
    parser.add_argument(
        "--patience-s",
        type=float,
        default=60.0,
        help="in which the executor answers that it has seen the end of a stream, at the least",
    )
    parser.add_argument("--role", default="worker", help="stands in each line of the log")
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--leader-fd", type=int, help="a socket to rank 0's link")
    role.add_argument(
        "--follower-fd", type=int, action="append", default=[], help="a socket to another rank's"
    )
    for flag in (flags.CLUSTER_TOKEN_FILE, flags.TLS_CERT, flags.TLS_KEY, flags.TLS_CA):
        parser.add_argument(flag.option, help=flag.says)
    arguments = parser.parse_args()
    logs.configure(f"{arguments.role}-link")
    # The executor decides when to leave; the end of the socketpair tells this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    leads = arguments.leader_fd is None
    siblings = arguments.follower_fd if leads else [arguments.leader_fd]
    try:
        trust = Trust.read(
            token_file=arguments.cluster_token_file,
            cert=arguments.tls_cert,
            key=arguments.tls_key,
            ca=arguments.tls_ca,
        )
    except FlagError as error:  # the file has changed since the executor looked
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    serving = _serve(
        arguments.fd,
        arguments.scheduler,
        siblings,
        beats_fd=arguments.beats_fd,
        leads=leads,
        trust=trust,
        patience_s=arguments.patience_s,
    )
    exit_code: int = uvloop.run(serving)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
