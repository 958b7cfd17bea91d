"""Flags that several commands share, in vLLM's words where it has them.

Their defaults are not here: a flag that is not given is not handed on, and the process that uses
it decides (`quire worker --help` and its like show what).
"""

from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.models import OptionInfo

from gateway.limits import described_limits, parse_limits

MODEL_HELP = (
    "An alias (smollm2, minilm), a Hugging Face directory, a .gguf file or a hub id (org/name)."
)
PORT_RANGE: dict[str, Any] = {"min": 1, "max": 65535}


class Device(StrEnum):
    """Where a worker computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """What weights and KV are kept in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class LoadFormat(StrEnum):
    """Where weights come from."""

    AUTO = "auto"
    DUMMY = "dummy"


class Pooling(StrEnum):
    """Which hidden states of a prompt make its vector."""

    LAST = "last"
    MEAN = "mean"
    CLS = "cls"


class Policy(StrEnum):
    """Who is next."""

    FCFS = "fcfs"
    PRIORITY = "priority"


def _option(help_text: str, panel: str, metavar: str | None = None, **more: Any) -> OptionInfo:
    option = typer.Option(help=help_text, rich_help_panel=panel, metavar=metavar, **more)
    assert isinstance(option, OptionInfo)
    return option


def _model(help_text: str, metavar: str | None = None) -> OptionInfo:
    return _option(help_text, "Model and workers", metavar)


def _scheduler(help_text: str, metavar: str | None = None) -> OptionInfo:
    return _option(help_text, "Scheduler", metavar)


def _router(help_text: str, metavar: str | None = None, **more: Any) -> OptionInfo:
    return _option(help_text, "Router", metavar, **more)


def _checked_limits(said: list[str] | None) -> list[str] | None:
    """Before anything is started."""
    try:
        parse_limits(said or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return said


def _checked_key(said: str | None) -> str | None:
    """What a variable that is not set leaves on a command line must not open a server."""
    if said == "":
        raise typer.BadParameter("the key is empty; leave the flag out to serve without one")
    return said


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]

Replicas = Annotated[int, _model("Workers, each with the whole model.", "N")]
TensorParallelSize = Annotated[
    int | None, _model("Ranks that share each worker's model, with a device each.", "N")
]
DeviceFlag = Annotated[Device | None, _model("Where workers compute.", "auto|cpu|cuda")]
DtypeFlag = Annotated[
    Dtype | None, _model("Of weights and KV: auto, float32, bfloat16 or float16.", "DTYPE")
]
LoadFormatFlag = Annotated[
    LoadFormat | None,
    _model("The directory's weights, or random ones (dummy), for benchmarks.", "auto|dummy"),
]
PoolingFlag = Annotated[
    Pooling | None,
    _model(
        "Of embeddings: the last or first token, or all (else as the model says).", "last|mean|cls"
    ),
]
EnforceEager = Annotated[bool, _model("On GPUs: capture no steps as CUDA graphs.", "")]
GpuMemoryUtilization = Annotated[
    float | None, _model("Share of each GPU's memory that may be used, 0 to 1.", "SHARE")
]
Threads = Annotated[int | None, _model("Compute threads per worker.", "N")]
MaxModelLen = Annotated[
    int | None, _model("Prompt and output tokens of a request, at most.", "TOKENS")
]
BlockSize = Annotated[int | None, _model("Of a KV block.", "TOKENS")]
NumBlocks = Annotated[int | None, _model("KV blocks per worker.", "N")]
KvCacheMemory = Annotated[
    str | None, _model("KV cache per worker, like 2GiB (instead of --num-blocks).", "SIZE")
]

MaxNumSeqs = Annotated[int | None, _scheduler("Sequences that run at once, per worker.", "N")]
MaxNumBatchedTokens = Annotated[int | None, _scheduler("Computed in one step, at most.", "TOKENS")]
SchedulingPolicy = Annotated[Policy | None, _scheduler("Who is next.", "fcfs|priority")]
PriorityAging = Annotated[
    float | None,
    _scheduler("With `priority`: waiting that weighs as much as one step of priority.", "SECONDS"),
]
NoPrefixCaching = Annotated[
    bool,
    typer.Option(
        "--no-enable-prefix-caching",
        help="Compute prompts that begin alike each time anew.",
        rich_help_panel="Scheduler",
    ),
]
Watermark = Annotated[
    float | None, _scheduler("Share of KV blocks kept free when admitting.", "SHARE")
]
StepTimeout = Annotated[
    float | None, _scheduler("A worker silent for this long is fenced.", "SECONDS")
]
MaxQueued = Annotated[int | None, _scheduler("Requests that may wait; more are refused.", "N")]
MaxCrashes = Annotated[
    int | None,
    _scheduler("Lost workers one request may have been running on; one more ends it.", "N"),
]

Host = Annotated[str, _router("Address to answer on.", "HOST")]
Port = Annotated[int, _router("Of the OpenAI API.", "PORT", **PORT_RANGE)]
GrpcPort = Annotated[int, _router("Of InferenceService (gRPC).", "PORT", **PORT_RANGE)]
MetricsPort = Annotated[
    int | None,
    _option(
        "Of the scheduler's /metrics; the workers take the ones after it (else free ones). "
        "The router's is at --port.",
        "Metrics",
        "PORT",
        **PORT_RANGE,
    ),
]
ApiKey = Annotated[
    str | None,
    _router(
        "Bearer token, or x-api-key, that clients must send.",
        "KEY",
        envvar="QUIRE_API_KEY",
        callback=_checked_key,
    ),
]
ServedModelName = Annotated[
    str | None, _router("What clients put in `model` (else MODEL's name).", "NAME")
]
ChatTemplate = Annotated[
    str | None, _router("Jinja file to use in place of the model's own chat template.", "FILE")
]
ToolCallParser = Annotated[
    str | None,
    _router("How the model calls tools.", "auto|hermes|llama3_json|mistral|pythonic|none"),
]
ReasoningParser = Annotated[
    str | None, _router("How the model sets its thoughts apart.", "auto|think|mistral|none")
]
MaxBodyBytes = Annotated[int | None, _router("Largest HTTP body.", "BYTES")]
Limit = Annotated[
    list[str] | None,
    _router(
        "The most that one request may ask for; may be given several times. By default: "
        f"{described_limits()}.",
        "NAME=VALUE",
        callback=_checked_limits,
        show_default=False,
    ),
]
MaxInFlight = Annotated[
    int | None, _router("Requests the router holds at once; more get 429.", "N")
]

Seed = Annotated[
    int | None,
    _router(
        "Requests without a seed get theirs from a generator seeded with this: the same again for "
        "the same order of arrival. Without it they are random.",
        "N",
    ),
]

RouterProcesses = Annotated[
    int,
    _router(
        "Routers that share --port and --grpc-port, for more than a core serves. Several keep no "
        "/v1/responses for `previous_response_id`.",
        "N",
    ),
]
MaxStoredBytes = Annotated[
    int | None,
    _router("Of /v1/responses that are kept for `previous_response_id`; 0 keeps none.", "BYTES"),
]
ResponseTtl = Annotated[float | None, _router("How long such a response is kept.", "SECONDS")]

AllowedOrigins = Annotated[
    str | None,
    _router(
        "Origins whose pages may ask from a browser, like https://app.example or '*'; several as a "
        "JSON array or with commas between them. Without it no page may.",
        "ORIGINS",
    ),
]
AllowedMethods = Annotated[str | None, _router("Methods they may use (else all).", "METHODS")]
AllowedHeaders = Annotated[str | None, _router("Headers they may send (else all).", "HEADERS")]
AllowCredentials = Annotated[
    bool,
    typer.Option(
        "--allow-credentials",
        help="They may let the browser add what it holds for this server.",
        rich_help_panel="Router",
    ),
]

UrlFlag = Annotated[
    str | None, typer.Option(metavar="URL", help="A running server, like http://127.0.0.1:8000.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="For programs: print JSON.")]
