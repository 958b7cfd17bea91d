"""What the command line of a worker says, and how it is refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.place import SOLE, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says; None where the worker decides."""

    model: Path
    scheduler: str
    served_model_name: str
    max_model_len: int | None
    block_size: int | None
    num_blocks: int | None
    kv_cache_memory: int | None
    """Bytes."""
    max_num_seqs: int
    max_num_batched_tokens: int | None
    dtype: str
    load_format: str
    enforce_eager: bool
    device: str
    cpu_backend: str
    cpu_isa: str
    kv_cache_dtype: str
    quantization: str
    gpu_memory_utilization: float
    num_threads: int
    threads_are_given: bool
    """By the operator, so that no other number is tried."""
    replica_id: str | None
    metrics_host: str
    metrics_port: int
    pooling: str | None = None
    """last, mean or cls."""
    link_arguments: Sequence[str] = ()
    """What the transport process is told of whom to trust."""
    packed_cache: Path | None = None
    """Folder of packed matrices; None: each worker has its own in memory."""
    place: Place = SOLE
    """Among the ranks of the replica."""


class StartError(Exception):
    """The worker cannot start and a restart would not help; the message is one line."""
