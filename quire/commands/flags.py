"""Flags that several commands share, in vLLM's words where it has them.

Their defaults are not here: a flag that is not given is not handed on, and the process that uses
it decides (`quire worker --help` and its like show what).
"""

from enum import StrEnum
from typing import Annotated

import typer

_MODEL_PANEL = "Model and worker"
_SCHEDULER_PANEL = "Scheduler"
_ROUTER_PANEL = "Router"

MODEL_HELP = "An alias (smollm2), a Hugging Face directory, a .gguf file or a hub id (org/name)."


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


class Policy(StrEnum):
    """Who is next."""

    FCFS = "fcfs"
    PRIORITY = "priority"


def _option(help_text: str, panel: str, minimum: float | None = None) -> typer.models.OptionInfo:
    option = typer.Option(help=help_text, rich_help_panel=panel, min=minimum, show_default=False)
    assert isinstance(option, typer.models.OptionInfo)
    return option


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]

MaxModelLen = Annotated[
    int | None, _option("Prompt and output tokens together, per request.", _MODEL_PANEL, 1)
]
DeviceFlag = Annotated[Device | None, _option("Where workers compute.", _MODEL_PANEL)]
DtypeFlag = Annotated[Dtype | None, _option("Of weights and KV cache.", _MODEL_PANEL)]
Threads = Annotated[int | None, _option("Compute threads per worker.", _MODEL_PANEL, 1)]
BlockSize = Annotated[int | None, _option("Tokens per KV block.", _MODEL_PANEL, 1)]
NumBlocks = Annotated[int | None, _option("KV blocks per worker.", _MODEL_PANEL, 1)]
KvCacheMemory = Annotated[
    str | None, _option("KV cache per worker, like 2GiB (instead of --num-blocks).", _MODEL_PANEL)
]
Replicas = Annotated[
    int, typer.Option(help="Workers, each with the whole model.", rich_help_panel=_MODEL_PANEL)
]

MaxNumSeqs = Annotated[
    int | None, _option("Sequences that run at once, per worker.", _SCHEDULER_PANEL, 1)
]
MaxNumBatchedTokens = Annotated[
    int | None, _option("Tokens computed in one step, at most.", _SCHEDULER_PANEL, 1)
]
SchedulingPolicy = Annotated[Policy | None, _option("Who is next.", _SCHEDULER_PANEL)]
EnablePrefixCaching = Annotated[
    bool,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        help="Reuse the KV of prompts that begin alike.",
        rich_help_panel=_SCHEDULER_PANEL,
    ),
]
Watermark = Annotated[
    float | None,
    _option("Share of KV blocks kept free when a request is admitted.", _SCHEDULER_PANEL, 0),
]
StepTimeout = Annotated[
    float | None,
    _option("Seconds, at least, before a worker that does not answer is fenced.", _SCHEDULER_PANEL),
]
MaxQueued = Annotated[
    int | None, _option("Requests that may wait; more are refused.", _SCHEDULER_PANEL, 0)
]

Host = Annotated[str, typer.Option(help="Address to answer on.", rich_help_panel=_ROUTER_PANEL)]
Port = Annotated[int, typer.Option(help="Of the OpenAI API.", rich_help_panel=_ROUTER_PANEL)]
GrpcPort = Annotated[
    int, typer.Option(help="Of InferenceService (gRPC).", rich_help_panel=_ROUTER_PANEL)
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="QUIRE_API_KEY",
        show_envvar=True,
        help="Bearer token that clients must send.",
        rich_help_panel=_ROUTER_PANEL,
    ),
]
ServedModelName = Annotated[
    str | None, _option("What clients put in `model` (else MODEL's name).", _ROUTER_PANEL)
]
MaxBodyBytes = Annotated[int | None, _option("Largest HTTP body.", _ROUTER_PANEL, 1)]
MaxInFlight = Annotated[
    int | None, _option("Requests the router holds at once; more get 429.", _ROUTER_PANEL, 1)
]

UrlFlag = Annotated[
    str | None,
    typer.Option(help="A running server, like http://127.0.0.1:8000.", show_default=False),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="For programs: print JSON.")]
