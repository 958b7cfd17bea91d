"""Flags that several commands share, in vLLM's words where it has them.

What each takes, and what holds without it, stands in `protos.flags`: a flag that is not given is
not handed on, and the process that uses it decides. What is given is checked here.
"""

from typing import Annotated, Any

import typer

from gateway.flags import CHAT_TEMPLATE, REASONING_PARSER, TOOL_CALL_PARSER
from gateway.limits import described_limits, parse_limits
from protos import flags
from protos.flag import Flag, FlagError

MODEL_HELP = (
    "An alias (smollm2, minilm), a Hugging Face directory, a .gguf file or a hub id (org/name)."
)


def _model(flag: Flag[Any]) -> Any:
    return flag.typer(rich_help_panel="Model and workers")


def _scheduler(flag: Flag[Any]) -> Any:
    return flag.typer(rich_help_panel="Scheduler")


def _router(flag: Flag[Any]) -> Any:
    return flag.typer(rich_help_panel="Router")


def _checked_limits(said: list[str] | None) -> list[str] | None:
    """Before anything is started."""
    try:
        parse_limits(said or ())
    except ValueError as error:
        raise FlagError(str(error)) from error
    return said


def _checked_key(said: str | None) -> str | None:
    """What a variable that is not set leaves on a command line must not open a server."""
    if said == "":
        raise FlagError("--api-key is ''; it must be at least 1 character, or left out")
    return said


ELSEWHERE = {
    "--enable-auto-tool-choice": "not needed: tools are at hand where the chat template knows them "
    "(--chat-template)",
    "--trust-remote-code": "never: of a model's directory only data is read",
    "--enable-chunked-prefill": "not needed: prompts are always computed in chunks of "
    "--max-num-batched-tokens",
    "--data-parallel-size": "here it is --replicas",
    "--api-server-count": "here it is --router-processes",
    "--disable-log-requests": "not needed: requests are not logged",
}
"""Options that vLLM has, and what there is in their place."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]

NamedModel = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The same as MODEL.", show_default=False),
]
ModelOrNone = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)
]

Replicas = Annotated[int, _model(flags.REPLICAS)]
TensorParallelSize = Annotated[int | None, _model(flags.TENSOR_PARALLEL_SIZE)]
DeviceFlag = Annotated[str | None, _model(flags.DEVICE)]
CpuBackend = Annotated[str | None, _model(flags.CPU_BACKEND)]
CpuIsa = Annotated[str | None, _model(flags.CPU_ISA)]
KvCacheDtype = Annotated[str | None, _model(flags.KV_CACHE_DTYPE)]
DtypeFlag = Annotated[str | None, _model(flags.DTYPE)]
Quantization = Annotated[str | None, _model(flags.QUANTIZATION)]
PackedCache = Annotated[str | None, _model(flags.PACKED_CACHE)]
LoadFormatFlag = Annotated[str | None, _model(flags.LOAD_FORMAT)]
PoolingFlag = Annotated[str | None, _model(flags.POOLING)]
EnforceEager = Annotated[
    bool,
    typer.Option(
        "--enforce-eager",
        help="On GPUs: capture no steps as CUDA graphs.",
        rich_help_panel="Model and workers",
    ),
]
GpuMemoryUtilization = Annotated[float | None, _model(flags.GPU_MEMORY_UTILIZATION)]
Threads = Annotated[int | None, _model(flags.THREADS)]
MaxModelLen = Annotated[int | None, _model(flags.MAX_MODEL_LEN)]
BlockSize = Annotated[int | None, _model(flags.BLOCK_SIZE)]
NumBlocks = Annotated[int | None, _model(flags.NUM_BLOCKS)]
KvCacheMemory = Annotated[int | None, _model(flags.KV_CACHE_MEMORY)]

MaxNumSeqs = Annotated[int | None, _scheduler(flags.MAX_NUM_SEQS)]
MaxNumBatchedTokens = Annotated[int | None, _scheduler(flags.WORKER_MAX_NUM_BATCHED_TOKENS)]
SchedulingPolicy = Annotated[str | None, _scheduler(flags.SCHEDULING_POLICY)]
PriorityAging = Annotated[float | None, _scheduler(flags.PRIORITY_AGING)]
PrefixCaching = Annotated[
    bool,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        help="Compute prompts that begin alike once, or each time anew.",
        rich_help_panel="Scheduler",
    ),
]
Watermark = Annotated[float | None, _scheduler(flags.WATERMARK)]
StepTimeout = Annotated[float | None, _scheduler(flags.STEP_TIMEOUT)]
MaxQueued = Annotated[int | None, _scheduler(flags.MAX_QUEUED)]
MaxQueuedTokens = Annotated[int | None, _scheduler(flags.MAX_QUEUED_TOKENS)]
MaxLosses = Annotated[int | None, _scheduler(flags.MAX_LOSSES)]
SpeculativeNgram = Annotated[str | None, _scheduler(flags.SPECULATIVE_NGRAM)]

Host = Annotated[str, _router(flags.HOST)]
Port = Annotated[int, _router(flags.STACK_PORT)]
GrpcPort = Annotated[int, _router(flags.STACK_GRPC_PORT)]
MetricsPort = Annotated[int | None, flags.STACK_METRICS_PORT.typer(rich_help_panel="Metrics")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        help="What clients must send, as a bearer token or x-api-key.",
        metavar="KEY",
        envvar="QUIRE_API_KEY",
        callback=_checked_key,
        show_default="none is asked for",
        rich_help_panel="Router",
    ),
]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        help="What clients must send, as a bearer token or x-api-key; may be given several times. "
        "Or one in QUIRE_API_KEY.",
        metavar="KEY",
        show_default="none is asked for",
        rich_help_panel="Router",
    ),
]
ApiKeyFile = Annotated[str | None, _router(flags.API_KEY_FILE)]
SslCertfile = Annotated[str | None, _router(flags.SSL_CERTFILE)]
SslKeyfile = Annotated[str | None, _router(flags.SSL_KEYFILE)]
SslCaCerts = Annotated[str | None, _router(flags.SSL_CA_CERTS)]
SharePrefixCache = Annotated[
    bool,
    typer.Option(
        "--share-prefix-cache",
        help="With several keys: let their requests find each other's prompts in the prefix cache.",
        rich_help_panel="Router",
    ),
]
ServedModelName = Annotated[str | None, _router(flags.SERVED_MODEL_NAME)]
ChatTemplate = Annotated[str | None, _router(CHAT_TEMPLATE)]
ToolCallParser = Annotated[str | None, _router(TOOL_CALL_PARSER)]
ReasoningParser = Annotated[str | None, _router(REASONING_PARSER)]
MaxBodyBytes = Annotated[int | None, _router(flags.MAX_BODY_BYTES)]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        help="The most that one request may ask for; may be given several times. By default: "
        f"{described_limits()}.",
        metavar="NAME=VALUE",
        callback=_checked_limits,
        show_default=False,
        rich_help_panel="Router",
    ),
]
MaxInFlight = Annotated[int | None, _router(flags.MAX_IN_FLIGHT)]
Seed = Annotated[int | None, _router(flags.SEED)]
RouterProcesses = Annotated[int, _router(flags.ROUTER_PROCESSES)]
MaxStoredBytes = Annotated[int | None, _router(flags.MAX_STORED_BYTES)]
ResponseTtl = Annotated[float | None, _router(flags.RESPONSE_TTL)]
AllowedHosts = Annotated[str | None, _router(flags.ALLOWED_HOSTS)]
AllowedOrigins = Annotated[str | None, _router(flags.ALLOWED_ORIGINS)]
AllowedMethods = Annotated[str | None, _router(flags.ALLOWED_METHODS)]
AllowedHeaders = Annotated[str | None, _router(flags.ALLOWED_HEADERS)]
AllowCredentials = Annotated[
    bool,
    typer.Option(
        "--allow-credentials",
        help="Those pages may let the browser add what it holds for this server.",
        rich_help_panel="Router",
    ),
]
DrainTimeout = Annotated[float, flags.DRAIN_TIMEOUT.typer()]
HangTimeout = Annotated[float, flags.HANG_TIMEOUT.typer()]

ClusterTokenFile = Annotated[str | None, flags.CLUSTER_TOKEN_FILE.typer()]
TlsCert = Annotated[str | None, flags.TLS_CERT.typer()]
TlsKey = Annotated[str | None, flags.TLS_KEY.typer()]
TlsCa = Annotated[str | None, flags.TLS_CA.typer()]

UrlFlag = Annotated[
    str | None, typer.Option(metavar="URL", help="A running server, like http://127.0.0.1:8000.")
]
CaCerts = Annotated[
    str | None,
    flags.SSL_CA_CERTS.typer(
        help="Authorities that the certificate of --url may be of, in PEM; else the system's."
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="For programs: print JSON.")]
