"""The worker as a process: load, warm up, attach, serve until told to leave.

Two processes in fact: this one owns the device, and `worker.link`, its child, owns the network.
Neither outlives the other. SIGTERM and SIGINT finish the plan at hand and leave in order; a second
one ends at once. The child ignores both and follows its parent.
"""

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import torch

from kernels.jit import set_threads
from protos import flags
from worker import wire
from worker.executor import Executor
from worker.link_process import END_S, LinkProcess, end_within
from worker.metrics import StepTotals, serve_metrics
from worker.options import Options, StartError
from worker.parallel import Group, LostRankError, form
from worker.pipe import LOST, REFUSED, PipeClosedError
from worker.plans import Hello, PlanError
from worker.start import find_device, hello, start

log = logging.getLogger(__name__)

_PATIENCE_S = 60.0
"""How long an executor may still be busy when its stream has ended, at the least: the transport
gives one whose steps take long more."""


class _StopSignal:
    """Turns SIGTERM and SIGINT into a flag and a readable socket, once it listens for them."""

    def __init__(self) -> None:
        self._stopping = False
        self.wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def listen(self) -> None:
        """From now on, instead of ending at once."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def __call__(self) -> bool:
        return self._stopping

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            os._exit(1)
        self._stopping = True


def run(options: Options) -> int:
    """Serves; returns the process's exit code. Raises `StartError` where a restart cannot help."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # nothing to finish yet
    device = find_device(options)
    set_threads(options.num_threads)
    try:
        group = form(options.place, device)
        return _run_in(group, options, device)
    except LostRankError as error:
        log.error("another rank has gone, or is stuck: %s", error)
        return 1


def _run_in(group: Group, options: Options, device: torch.device) -> int:
    totals, stop = StepTotals(), _StopSignal()
    metrics_url = _serve_metrics(options, totals)
    link = _start_link(options, group, stop.wake)  # it asks to be let in before a weight is read
    started = start(options, device, group)
    log.info("start-up took %s", started.phases)
    said = hello(options, started, device, group)
    stop.listen()
    say_ready = _ready_once(options, metrics_url, started.num_blocks)
    answers = group.rank == 0
    executor = Executor(started.runner, link.pipe, totals, say_ready, answers=answers, hello=said)
    try:
        exit_code = _serve(executor, link, said, stop)
    finally:
        end_within(END_S)
        started.runner.close()  # captured steps hold operations of the group
    group.leave()
    return exit_code


def _start_link(options: Options, group: Group, wake: socket.socket) -> LinkProcess:
    arguments = ["--scheduler", options.scheduler, "--role", options.place.role]
    return LinkProcess(
        [*arguments, *options.link_arguments],
        group.siblings,
        leads=group.rank == 0,
        wake=wake,
        patience_s=_PATIENCE_S,
    )


def _serve(
    executor: Executor, link: LinkProcess, said: Hello, should_stop: Callable[[], bool]
) -> int:
    try:
        link.pipe.send(wire.encode_hello(said))
        executor.run(should_stop)
        link.pipe.send(wire.FAREWELL)
        exit_code = 0
    except PipeClosedError:
        link.pipe.close()  # a transport that has lost another rank's waits for this
        # The link has said why it was refused, which is final; anything else is a crash.
        ended = link.exit_code()
        if ended == LOST:
            raise LostRankError("its transport process has gone") from None
        exit_code = 2 if ended == REFUSED else 1
        if exit_code == 1:
            log.error("the transport process ended with code %d", ended)
    except PlanError as error:
        log.error("the scheduler's plan contradicts this worker's state: %s", error)
        exit_code = 1
    finally:
        link.pipe.close()
        link.exit_code()
    return exit_code


def _serve_metrics(options: Options, totals: StepTotals) -> str:
    host, port = options.metrics_host, options.metrics_port
    try:
        port = serve_metrics(totals, options.served_model_name, host, port)
    except OSError as error:
        raise StartError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; "
            f"{flags.WORKER_METRICS_PORT.option} names another port (0: any free one)"
        ) from error
    return f"http://{host}:{port}/metrics"


def _ready_once(options: Options, metrics_url: str, num_blocks: int) -> Callable[[], None]:
    """Says on standard output, at the first Welcome alone, that this worker serves.

    One that is started in its place shall have as many blocks, whatever is free at that moment.
    """
    said = False

    def on_welcome() -> None:
        nonlocal said
        log.info("attached to the scheduler at %s", options.scheduler)
        if said:
            return
        said = True
        ready = {
            "role": "worker",
            "pid": os.getpid(),
            "rank": options.place.rank,
            "world_size": options.place.world_size,
            "address": options.scheduler,
            "metrics": metrics_url,
            "restart_arguments": ["--num-blocks", str(num_blocks)] if num_blocks else [],
        }
        sys.stdout.write(f"quire-ready {json.dumps(ready)}\n")
        sys.stdout.flush()

    return on_welcome
