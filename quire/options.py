"""The flags of `quire serve` and `LLM(...)`, and which process each is handed to.

A flag that was not given is not passed on: its default lives in the process that uses it. The
exceptions are what the stack itself acts on: how many replicas it starts, how long it lets them
drain or hang, and where it and they answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gateway.cors import parse_cors
from gateway.flags import CHAT_TEMPLATE, REASONING_PARSER, TOOL_CALL_PARSER
from gateway.hosts import parse_hosts
from protos import flags
from protos.flag import Flag, FlagError
from quire.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """How to run a stack; None leaves the process its own default."""

    replicas: int = flags.REPLICAS.default
    tensor_parallel_size: int | None = None
    router_processes: int = flags.ROUTER_PROCESSES.default
    """Several share the ports that clients know."""

    drain_timeout: float = flags.DRAIN_TIMEOUT.default
    """Seconds that requests in flight may take to finish when the stack is stopped."""

    hang_timeout: float = flags.HANG_TIMEOUT.default
    """Seconds without an answer after which a scheduler or router is killed and started again; 0:
    never, and neither is any process that is stopped."""

    metrics_port: int | None = None
    """The scheduler's; each worker takes the next one, then each router if there are several. None:
    ports that are free."""

    device: str | None = None
    cpu_backend: str | None = None
    cpu_isa: str | None = None
    kv_cache_dtype: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    packed_cache: str | None = None
    load_format: str | None = None
    pooling: str | None = None
    """Of embeddings: last, mean or cls; None: what the model says."""

    enforce_eager: bool = False
    """On a GPU: capture no steps as CUDA graphs."""

    gpu_memory_utilization: float | None = None
    threads: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    kv_cache_memory: int | str | None = None
    """Bytes, or like "2GiB"."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    scheduling_policy: str | None = None
    priority_aging: float | None = None
    enable_prefix_caching: bool = True
    watermark: float | None = None
    step_timeout: float | None = None
    max_queued: int | None = None
    max_queued_tokens: int | None = None
    max_losses: int | None = None
    speculative_ngram: int | str | None = None
    """"auto", "off", or the most tokens that a step may suppose and verify."""

    served_model_name: str | None = None
    chat_template: str | None = None
    """A Jinja file in place of the model's own."""

    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    max_body_bytes: int | None = None
    limit: Sequence[str] | None = None
    """NAME=VALUE, each the most of something that one request may ask for."""

    max_in_flight: int | None = None
    seed: int | None = None
    """Of the seeds that requests without one get."""

    max_stored_bytes: int | None = None
    """Of /v1/responses that are kept."""

    response_ttl: float | None = None
    allowed_hosts: str | None = None
    """Names that may be asked by where no key is asked for."""

    allowed_origins: str | None = None
    """Whose pages may ask from a browser; None: nobody's."""

    allowed_methods: str | None = None
    allowed_headers: str | None = None
    allow_credentials: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a value that its process would refuse."""
        for name, flag in _FLAGS.items():
            value = getattr(self, name)
            if value is None and _DEFAULTS[name] is None:
                continue
            try:
                flag.checked(value, name)
            except FlagError as error:
                raise ConfigurationError(str(error)) from error
        names = (self.allowed_origins, self.allowed_methods, self.allowed_headers)
        *cors, hosts = (
            None if value is None else str(value) for value in (*names, self.allowed_hosts)
        )
        try:
            parse_cors(*cors, credentials=self.allow_credentials)
            parse_hosts(hosts, None)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    @property
    def needs_weights(self) -> bool:
        """Whether the model's weights must be there."""
        return self.load_format != "dummy"

    @property
    def num_processes(self) -> int:
        """Of the whole stack."""
        return 1 + self.num_workers + self.router_processes

    @property
    def num_ranks(self) -> int:
        """Processes that share the model of one worker."""
        return self.tensor_parallel_size or 1

    @property
    def num_workers(self) -> int:
        """Processes that hold a model or a part of it."""
        return self.replicas * self.num_ranks

    def arguments(self, role: str) -> list[str]:
        """The command-line arguments that this role is handed."""
        arguments = []
        for name in _TAKES[role]:
            value = getattr(self, name)
            if value is not None:
                arguments += [f"--{name.replace('_', '-')}", str(value)]
        if role == "scheduler" and not self.enable_prefix_caching:
            arguments.append("--no-enable-prefix-caching")
        if role == "worker" and self.enforce_eager:
            arguments.append("--enforce-eager")
        if role == "router":
            arguments += [part for said in self.limit or () for part in ("--limit", said)]
            if self.allow_credentials:
                arguments.append("--allow-credentials")
        return arguments

    @classmethod
    def names(cls) -> list[str]:
        """Every option."""
        return [field.name for field in fields(cls)]

    @classmethod
    def among(cls, parameters: Mapping[str, Any]) -> "StackOptions":
        """Those of a command's parameters that are options of the stack."""
        return cls(**{name: parameters[name] for name in cls.names() if name in parameters})


_TAKES = {
    "scheduler": (
        "max_num_seqs",
        "max_num_batched_tokens",
        "scheduling_policy",
        "priority_aging",
        "watermark",
        "step_timeout",
        "max_queued",
        "max_queued_tokens",
        "max_losses",
        "speculative_ngram",
        "drain_timeout",
    ),
    "worker": (
        "served_model_name",
        "tensor_parallel_size",
        "device",
        "cpu_backend",
        "cpu_isa",
        "dtype",
        "kv_cache_dtype",
        "quantization",
        "packed_cache",
        "load_format",
        "pooling",
        "gpu_memory_utilization",
        "threads",
        "max_model_len",
        "block_size",
        "num_blocks",
        "kv_cache_memory",
        "max_num_seqs",
        "max_num_batched_tokens",
    ),
    "router": (
        "served_model_name",
        "chat_template",
        "tool_call_parser",
        "reasoning_parser",
        "max_body_bytes",
        "max_in_flight",
        "seed",
        "drain_timeout",
        "max_stored_bytes",
        "response_ttl",
        "allowed_hosts",
        "allowed_origins",
        "allowed_methods",
        "allowed_headers",
    ),
}

_FLAGS: dict[str, Flag[Any]] = {
    flag.name: flag
    for flag in (
        *(flags.REPLICAS, flags.ROUTER_PROCESSES, flags.DRAIN_TIMEOUT, flags.HANG_TIMEOUT),
        flags.STACK_METRICS_PORT,
        *(flags.TENSOR_PARALLEL_SIZE, flags.DEVICE, flags.CPU_BACKEND, flags.CPU_ISA, flags.DTYPE),
        *(flags.KV_CACHE_DTYPE, flags.QUANTIZATION, flags.PACKED_CACHE),
        *(flags.LOAD_FORMAT, flags.POOLING),
        *(flags.GPU_MEMORY_UTILIZATION, flags.THREADS, flags.MAX_MODEL_LEN, flags.BLOCK_SIZE),
        *(flags.NUM_BLOCKS, flags.KV_CACHE_MEMORY, flags.MAX_NUM_SEQS),
        *(flags.WORKER_MAX_NUM_BATCHED_TOKENS, flags.SCHEDULING_POLICY, flags.PRIORITY_AGING),
        *(flags.WATERMARK, flags.STEP_TIMEOUT, flags.MAX_LOSSES, flags.SPECULATIVE_NGRAM),
        *(flags.MAX_QUEUED, flags.MAX_QUEUED_TOKENS),
        *(flags.SERVED_MODEL_NAME, CHAT_TEMPLATE, TOOL_CALL_PARSER, REASONING_PARSER),
        *(flags.MAX_BODY_BYTES, flags.MAX_IN_FLIGHT, flags.SEED, flags.MAX_STORED_BYTES),
        *(flags.RESPONSE_TTL, flags.ALLOWED_ORIGINS, flags.ALLOWED_METHODS),
        *(flags.ALLOWED_HEADERS, flags.ALLOWED_HOSTS),
    )
}
_DEFAULTS = {field.name: field.default for field in fields(StackOptions)}
