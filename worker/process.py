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
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from kernels.jit import set_threads
from worker import wire
from worker.encoder_loader import LoadedEncoder, holds_encoder, open_encoder
from worker.encoder_runner import start_encoder
from worker.executor import Executor, Runner
from worker.grammars import Grammars
from worker.ledger import KVNeed, KVRequest, MemoryShortError, check_weights
from worker.loader import LoadedModel, LoadError, open_model
from worker.metrics import StepTotals, serve_metrics
from worker.parallel import Group, LostRankError, form
from worker.pipe import LOST, REFUSED, Pipe, PipeClosedError
from worker.place import SOLE, Place
from worker.plans import Hello, PlanError, Pooling
from worker.runners import start_runner
from worker.sizes import Sizes, default_buckets

log = logging.getLogger(__name__)

_CHILD_EXIT_S = 5.0
_END_S = 10
"""In which an executor that ends lets go of its device: one that is stuck never would."""

_PATIENCE_S = 60.0
"""How long an executor may still be busy when its stream has ended, at the least: the transport
gives one whose steps take long more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says; None where the worker decides."""

    model: Path
    scheduler: str
    served_model_name: str
    max_model_len: int | None
    block_size: int
    num_blocks: int | None
    kv_cache_memory: int | None
    """Bytes."""
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype: str
    load_format: str
    enforce_eager: bool
    device: str
    gpu_memory_utilization: float
    num_threads: int
    replica_id: str | None
    metrics_host: str
    metrics_port: int
    pooling: str | None = None
    """last, mean or cls."""
    link_arguments: Sequence[str] = ()
    """What the transport process is told of whom to trust."""
    place: Place = SOLE
    """Among the ranks of the replica."""


class StartError(Exception):
    """The worker cannot start and a restart would not help; the message is one line."""


class _StopSignal:
    """Turns SIGTERM and SIGINT into a flag and a readable socket."""

    def __init__(self) -> None:
        self._stopping = False
        self.wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
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
    device = _device(options)
    set_threads(options.num_threads)
    try:
        group = form(options.place, device)
        return _run_in(group, options, device)
    except LostRankError as error:
        log.error("another rank has gone, or is stuck: %s", error)
        return 1


def _run_in(group: Group, options: Options, device: torch.device) -> int:
    totals = StepTotals()
    metrics_url = _serve_metrics(options, totals)
    served = _start_encoder if _holds_encoder(options) else _start
    runner, num_blocks, loaded = served(options, device, group)
    hello = _hello(options, loaded, num_blocks, runner, device, group)
    stop = _StopSignal()
    child, pipe = _start_link(options, group, stop.wake, _PATIENCE_S)
    pipe.send(wire.encode_hello(hello))
    say_ready = _ready_once(options, metrics_url, num_blocks)
    executor = Executor(runner, pipe, totals, say_ready, answers=group.rank == 0, hello=hello)
    try:
        exit_code = _serve(executor, pipe, child, stop)
    finally:
        _end_within(_END_S)
        runner.close()  # captured steps hold operations of the group
    group.leave()
    return exit_code


def _serve(
    executor: Executor, pipe: Pipe, child: subprocess.Popen[bytes], should_stop: Callable[[], bool]
) -> int:
    try:
        executor.run(should_stop)
        pipe.send(wire.FAREWELL)
        exit_code = 0
    except PipeClosedError:
        pipe.close()  # a transport that has lost another rank's waits for this
        # The link has said why it was refused, which is final; anything else is a crash.
        ended = _exit_code(child)
        if ended == LOST:
            raise LostRankError("its transport process has gone") from None
        exit_code = 2 if ended == REFUSED else 1
        if exit_code == 1:
            log.error("the transport process ended with code %d", ended)
    except PlanError as error:
        log.error("the scheduler's plan contradicts this worker's state: %s", error)
        exit_code = 1
    finally:
        pipe.close()
        _exit_code(child)
    return exit_code


def _end_within(seconds: int) -> None:
    """Whatever hangs from now on, the kernel ends: the transport has gone, which would have."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _exit_code(child: subprocess.Popen[bytes]) -> int:
    """Waits for the child, which leaves by itself once the socketpair is closed on either side."""
    try:
        return child.wait(_CHILD_EXIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _device(options: Options) -> torch.device:
    asked, place = options.device, options.place
    if asked == "cuda" and not torch.cuda.is_available():
        raise StartError("--device is cuda; this machine has no CUDA device that torch can use")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if place.local_world_size > found:
        raise StartError(
            f"--tensor-parallel-size is {place.local_world_size}; "
            f"this machine has {found} CUDA device(s)"
        )
    return torch.device("cuda", place.local_rank)


def _serve_metrics(options: Options, totals: StepTotals) -> str:
    host, port = options.metrics_host, options.metrics_port
    try:
        port = serve_metrics(totals, options.served_model_name, host, port)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
    return f"http://{host}:{port}/metrics"


def _holds_encoder(options: Options) -> bool:
    try:
        return holds_encoder(options.model)
    except LoadError as error:
        raise StartError(str(error)) from error


def _start_encoder(
    options: Options, device: torch.device, group: Group
) -> tuple[Runner, int, LoadedEncoder]:
    """Reads the weights, if there is room for them, and warms up; an encoder has no KV, and so no
    blocks."""
    for flag, value in (
        ("--num-blocks", options.num_blocks),
        ("--kv-cache-memory", options.kv_cache_memory),
    ):
        if value is not None:
            raise StartError(f"{flag} is {value}; this model is an encoder, which keeps no KV")
    if group.world_size > 1:
        raise StartError(
            f"--tensor-parallel-size is {group.world_size}; an encoder runs on one rank"
        )
    try:
        opened = open_encoder(
            options.model,
            dtype=options.dtype,
            device=device,
            max_model_len=options.max_model_len,
            load_format=options.load_format,
            pooling=_pooling(options),
        )
        check_weights(opened)
        loaded = opened.load()
    except (LoadError, MemoryShortError) as error:
        raise StartError(str(error)) from error
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise StartError(f"the weights do not fit: {reason}") from error
    sizes = Sizes(options.block_size, options.max_num_seqs, options.max_num_batched_tokens)
    return start_encoder(loaded, sizes), 0, loaded


def _pooling(options: Options) -> Pooling | None:
    return None if options.pooling is None else Pooling[options.pooling.upper()]


def _start(options: Options, device: torch.device, group: Group) -> tuple[Runner, int, LoadedModel]:
    """Reads the weights, once it is known that what was asked for can be had, and warms up."""
    request = KVRequest(options.num_blocks, options.kv_cache_memory)
    buckets: tuple[int, ...] = ()
    if not options.enforce_eager:
        buckets = default_buckets(options.max_num_seqs, options.max_num_batched_tokens)
    try:
        opened = open_model(
            options.model,
            dtype=options.dtype,
            device=device,
            max_model_len=options.max_model_len,
            load_format=options.load_format,
            group=group,
            pooling=_pooling(options),
        )
        KVNeed.of(opened, options.block_size).check(request)
        check_weights(opened)
        grammars = Grammars(
            options.model / "tokenizer.json", opened.config.vocab_size, options.num_threads
        )
        loaded = opened.load()
        runner, ledger = start_runner(
            loaded,
            request,
            Sizes(
                options.block_size, options.max_num_seqs, options.max_num_batched_tokens, buckets
            ),
            device=device,
            utilization=options.gpu_memory_utilization,
            group=group,
            grammars=grammars,
        )
    except (LoadError, MemoryShortError) as error:
        raise StartError(str(error)) from error
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise StartError(f"the weights and the largest step do not fit: {reason}") from error
    return runner, ledger.num_blocks, loaded


def _hello(
    options: Options,
    loaded: LoadedModel | LoadedEncoder,
    num_blocks: int,
    runner: Runner,
    device: torch.device,
    group: Group,
) -> Hello:
    worker_id = f"{socket.gethostname()}-{os.getpid()}"
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({options.num_threads} threads)"
    )
    return Hello(
        worker_id=worker_id,
        replica_id=options.replica_id or group.agree(worker_id),
        rank=group.rank,
        world_size=group.world_size,
        model_name=options.served_model_name,
        model_revision=loaded.revision,
        max_model_len=loaded.max_model_len,
        vocab_size=loaded.config.vocab_size,
        dtype=str(loaded.dtype).removeprefix("torch."),
        num_blocks=num_blocks,
        block_size=options.block_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        pid=os.getpid(),
        device=name,
        graph_buckets=runner.graph_buckets,
        pooling=loaded.pooling.pooling,
        embedding_dim=loaded.embedding_dim,
        is_encoder=isinstance(loaded, LoadedEncoder),
    )


def _start_link(
    options: Options, group: Group, wake: socket.socket, patience_s: float
) -> tuple[subprocess.Popen[bytes], Pipe]:
    """The link, on one end of a socketpair and with the sockets to the other ranks' links.

    It ends this process when that does not answer for `patience_s` or longer after the end of a
    stream.
    """
    ours, theirs = socket.socketpair()
    sibling = "--follower-fd" if group.rank == 0 else "--leader-fd"
    fds = [theirs.fileno(), *(end.fileno() for end in group.siblings)]
    python = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
    command = [*python, "-m", "worker.link", "--scheduler", options.scheduler]
    command += ["--role", options.place.role, "--patience-s", str(patience_s)]
    command += ["--fd", str(fds[0]), *options.link_arguments]
    for fd in fds[1:]:
        command += [sibling, str(fd)]
    child = subprocess.Popen(
        command,
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        env={"GRPC_VERBOSITY": "NONE", **os.environ},  # the link reports gRPC's errors itself
    )
    for end in (theirs, *group.siblings):
        end.close()
    return child, Pipe(ours, wake)


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
