"""`python -m worker`: the command line of the worker process."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class DType(StrEnum):
    """Number formats of weights and KV."""

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


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@app.command()
def main(
    model: Annotated[
        Path, typer.Option(help="Model directory: config.json and safetensors.", metavar="DIR")
    ],
    scheduler: Annotated[
        str, typer.Option(metavar="ADDR", help="Scheduler to dial: HOST:PORT or unix:PATH.")
    ] = "127.0.0.1:50051",
    served_model_name: Annotated[
        str | None,
        typer.Option(help=r"Name clients ask for. \[default: the directory's]", show_default=False),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=r"Tokens of the longest sequence. \[default: the model's limit]",
            show_default=False,
        ),
    ] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 16,
    num_blocks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="KV blocks, exactly; stands above --kv-cache-memory. "
            r"\[default: what the memory gives]",
            show_default=False,
        ),
    ] = None,
    kv_cache_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for KV, like 2GiB. "
            r"\[default: what full slots need, within a share of what is free]",
            show_default=False,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, help="Sequences running at once, at most.")
    ] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens computed in one step, at most.")
    ] = 2048,
    dtype: Annotated[DType, typer.Option(help="Number format of weights and KV.")] = DType.AUTO,
    load_format: Annotated[
        LoadFormat,
        typer.Option(help="Read the directory's weights, or make random ones (for benchmarks)."),
    ] = LoadFormat.AUTO,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="Which token's hidden state is a prompt's embedding, or their mean. "
            r"\[default: what the model says; else last, and mean of an encoder]",
            show_default=False,
        ),
    ] = None,
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="Capture no steps as CUDA graphs.")
    ] = False,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.AUTO,
    gpu_memory_utilization: Annotated[
        float,
        typer.Option(min=0.05, max=1.0, help="Share of a GPU's memory that may be used."),
    ] = 0.9,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=r"Compute threads on a CPU. \[default: the physical cores it may use]",
            show_default=False,
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int, typer.Option(min=1, help="Ranks that share the model, each with a device of its own.")
    ] = 1,
    replica_id: Annotated[
        str | None,
        typer.Option(
            help=r"Names the replica this worker is of. \[default: one of its own]",
            show_default=False,
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address that /metrics is served on.")
    ] = "127.0.0.1",
    metrics_port: Annotated[
        list[int],
        typer.Option(
            min=0,
            max=65535,
            help="Port of /metrics, given once for each rank, or else for the first; 0 takes any "
            "free one.",
        ),
    ] = [9402],  # noqa: B006  (read only)
) -> None:
    """Runs a worker: it holds a model and its KV, dials the scheduler and executes its plans.

    With --tensor-parallel-size it starts that many ranks with torchrun; started by torchrun, it is
    one of them.
    """
    from worker import logs
    from worker.cores import size_thread_pools, usable_cores
    from worker.place import Place, end_with_parent

    place = Place.find()
    if place is None and tensor_parallel_size > 1:
        from worker.torchrun import run_ranks

        raise typer.Exit(run_ranks(tensor_parallel_size, sys.argv[1:]))
    if place is None:
        place = Place()
    else:
        end_with_parent()
    if tensor_parallel_size not in (1, place.world_size):
        sys.stderr.write(
            f"error: --tensor-parallel-size is {tensor_parallel_size}; "
            f"torchrun has started {place.world_size} rank(s)\n"
        )
        raise typer.Exit(2)

    logs.configure(place.role)
    num_threads = threads or max(1, usable_cores() // place.local_world_size)
    size_thread_pools(num_threads)  # before torch and numba load: they read it then, and only then

    from worker.process import Options, StartError, run

    options = Options(
        model=model,
        scheduler=scheduler,
        served_model_name=served_model_name or model.resolve().name,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        kv_cache_memory=kv_cache_memory,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        dtype=dtype.value,
        load_format=load_format.value,
        pooling=pooling.value if pooling else None,
        enforce_eager=enforce_eager,
        device=device.value,
        gpu_memory_utilization=gpu_memory_utilization,
        num_threads=num_threads,
        replica_id=replica_id,
        metrics_host=metrics_host,
        metrics_port=_port_of(place.local_rank, metrics_port),
        place=place,
    )
    try:
        exit_code = run(options)
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        exit_code = 2
    raise typer.Exit(exit_code)


def _port_of(rank: int, ports: Sequence[int]) -> int:
    """The rank's own; beyond those given, they count up from the last."""
    if rank < len(ports) or not ports[-1]:
        return ports[min(rank, len(ports) - 1)]
    return ports[-1] + rank - len(ports) + 1


if __name__ == "__main__":
    app()
