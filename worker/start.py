"""From the options to a model that has computed already, and to the hello that says what it has.

What cannot be had is told in one line, a `StartError`, and where possible before a weight is read.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from protos.blocks import BLOCK_SIZE
from worker.backends import Wishes
from worker.encoder_loader import LoadedEncoder, holds_encoder, open_encoder
from worker.encoder_runner import start_encoder
from worker.executor import Runner
from worker.grammars import Grammars
from worker.ledger import KVNeed, KVRequest, MemoryShortError, check_weights
from worker.loader import LoadedModel, LoadError, open_model
from worker.native import NativeDecoder
from worker.options import Options, StartError
from worker.packed_cache import PackedCache
from worker.parallel import Group
from worker.phases import Phases
from worker.plans import Hello, Pooling
from worker.runners import start_runner
from worker.sizes import MAX_STEP_TOKENS, Sizes, default_buckets, default_step_tokens


@dataclass(frozen=True)
class Started:
    """A model that can serve.

    Attributes:
        runner: executes plans.
        loaded: the model.
        sizes: how large steps may get.
        num_blocks: of KV; an encoder has none.
        phases: how long it took.
    """

    runner: Runner
    loaded: LoadedModel | LoadedEncoder
    sizes: Sizes
    num_blocks: int
    phases: Phases


def find_device(options: Options) -> torch.device:
    """Where the model runs. Raises `StartError`."""
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


def start(options: Options, device: torch.device, group: Group) -> Started:
    """Reads the weights, once it is known that what was asked for can be had, and warms up.

    Raises `StartError`.
    """
    phases = Phases()
    phases.end("imports")
    with _in_one_line():
        starts = _start_encoder if holds_encoder(options.model) else _start_model
        return starts(options, device, group, phases)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except (LoadError, MemoryShortError) as error:
        raise StartError(str(error)) from error
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise StartError(f"the weights and the largest step do not fit: {reason}") from error


def _start_encoder(options: Options, device: torch.device, group: Group, phases: Phases) -> Started:
    """An encoder has no KV, and so no blocks; its prompts are computed whole."""
    for flag, value in (
        ("--num-blocks", options.num_blocks),
        ("--kv-cache-memory", options.kv_cache_memory),
    ):
        if value is not None:
            raise StartError(f"{flag} is {value}; this model is an encoder, which keeps no KV")
    if options.quantization in ("int8", "int4"):
        raise StartError(
            f"--quantization is {options.quantization}; an encoder is computed in floats"
        )
    if options.cpu_backend == "native":
        raise StartError("--cpu-backend is native; torch computes encoders")
    if options.kv_cache_dtype != "auto":
        raise StartError(
            f"--kv-cache-dtype is {options.kv_cache_dtype}; this model is an encoder, which keeps "
            "no KV"
        )
    if group.world_size > 1:
        raise StartError(
            f"--tensor-parallel-size is {group.world_size}; an encoder runs on one rank"
        )
    opened = open_encoder(
        options.model,
        dtype=options.dtype,
        device=device,
        max_model_len=options.max_model_len,
        load_format=options.load_format,
        pooling=_pooling(options),
    )
    check_weights(opened)
    phases.end("checkpoint")
    loaded = opened.load()
    phases.end("weights")
    budget = options.max_num_batched_tokens or MAX_STEP_TOKENS
    sizes = Sizes(options.block_size or BLOCK_SIZE, options.max_num_seqs, budget)
    runner = start_encoder(loaded, sizes)
    phases.end("warm-up")
    return Started(runner, loaded, sizes, 0, phases)


def _start_model(options: Options, device: torch.device, group: Group, phases: Phases) -> Started:
    request = KVRequest(options.num_blocks, options.kv_cache_memory)
    opened = open_model(
        options.model,
        dtype=options.dtype,
        device=device,
        max_model_len=options.max_model_len,
        load_format=options.load_format,
        group=group,
        pooling=_pooling(options),
        wishes=_wishes(options, device),
        packed_cache=None if options.packed_cache is None else PackedCache(options.packed_cache),
    )
    KVNeed.of(opened, opened.backend.block_size).check(request)
    check_weights(opened)
    grammars = Grammars(
        options.model / "tokenizer.json", opened.config.vocab_size, options.num_threads
    )
    phases.end("checkpoint")
    loaded = opened.load()
    phases.end("weights")
    sizes = _sizes(options, device, opened.backend.block_size)
    runner, ledger = start_runner(
        loaded,
        request,
        sizes,
        device=device,
        utilization=options.gpu_memory_utilization,
        group=group,
        grammars=grammars,
    )
    phases.end("warm-up")
    return Started(runner, loaded, sizes, ledger.num_blocks, phases)


def _wishes(options: Options, device: torch.device) -> Wishes:
    """Raises StartError."""
    if device.type != "cpu" and options.quantization in ("int8", "int4"):
        raise StartError(f"--quantization is {options.quantization}; it is for CPUs")
    return Wishes(
        options.cpu_backend,
        options.num_threads,
        options.block_size,
        options.quantization,
        options.kv_cache_dtype,
        options.cpu_isa,
        measures_threads=not options.threads_are_given,
    )


def _sizes(options: Options, device: torch.device, block_size: int) -> Sizes:
    budget = options.max_num_batched_tokens or default_step_tokens(device, options.max_num_seqs)
    buckets = () if options.enforce_eager else default_buckets(options.max_num_seqs, budget)
    return Sizes(block_size, options.max_num_seqs, budget, buckets)


def _pooling(options: Options) -> Pooling | None:
    return None if options.pooling is None else Pooling[options.pooling.upper()]


def _backend(loaded: LoadedModel | LoadedEncoder) -> str:
    return loaded.backend.name if isinstance(loaded, LoadedModel) else "torch"


def _threads(options: Options, loaded: LoadedModel | LoadedEncoder) -> int:
    """That compute; fewer than there might be, if that was faster."""
    model = loaded.model
    return model.num_threads if isinstance(model, NativeDecoder) else options.num_threads


def hello(options: Options, started: Started, device: torch.device, group: Group) -> Hello:
    """What the scheduler must know of this worker."""
    loaded, sizes = started.loaded, started.sizes
    # In containers of a name, all are process 1.
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({_backend(loaded)}, {_threads(options, loaded)} threads)"
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
        num_blocks=started.num_blocks,
        block_size=sizes.block_size,
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        pid=os.getpid(),
        device=name,
        graph_buckets=started.runner.graph_buckets,
        max_draft_tokens=started.runner.max_draft_tokens,
        pooling=loaded.pooling.pooling,
        embedding_dim=loaded.embedding_dim,
        is_encoder=isinstance(loaded, LoadedEncoder),
    )
