"""`python -m worker`: the command line of the worker process."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from protos import flags
from protos.command_line import run
from protos.folders import cache_dir
from protos.trust import Trust

_METRICS_PORTS = [flags.WORKER_METRICS_PORT.default]

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def main(
    model: Annotated[
        Path, typer.Option(help="Model directory: config.json and safetensors.", metavar="DIR")
    ],
    scheduler: Annotated[
        str, typer.Option(metavar="ADDR", help="Scheduler to dial: HOST:PORT or unix:PATH.")
    ] = "127.0.0.1:50051",
    cluster_token_file: Annotated[str | None, flags.CLUSTER_TOKEN_FILE.typer()] = None,
    tls_cert: Annotated[str | None, flags.TLS_CERT.typer()] = None,
    tls_key: Annotated[str | None, flags.TLS_KEY.typer()] = None,
    tls_ca: Annotated[str | None, flags.TLS_CA.typer()] = None,
    served_model_name: Annotated[str | None, flags.SERVED_MODEL_NAME.typer()] = None,
    max_model_len: Annotated[int | None, flags.MAX_MODEL_LEN.typer()] = None,
    block_size: Annotated[int | None, flags.BLOCK_SIZE.typer()] = None,
    num_blocks: Annotated[int | None, flags.NUM_BLOCKS.typer()] = None,
    kv_cache_memory: Annotated[int | None, flags.KV_CACHE_MEMORY.typer()] = None,
    max_num_seqs: Annotated[int, flags.MAX_NUM_SEQS.typer()] = flags.MAX_NUM_SEQS.default,
    max_num_batched_tokens: Annotated[
        int | None, flags.WORKER_MAX_NUM_BATCHED_TOKENS.typer()
    ] = None,
    dtype: Annotated[str, flags.DTYPE.typer()] = flags.DTYPE.default,
    quantization: Annotated[str, flags.QUANTIZATION.typer()] = flags.QUANTIZATION.default,
    packed_cache: Annotated[str, flags.PACKED_CACHE.typer()] = flags.PACKED_CACHE.default,
    load_format: Annotated[str, flags.LOAD_FORMAT.typer()] = flags.LOAD_FORMAT.default,
    pooling: Annotated[str | None, flags.POOLING.typer()] = None,
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="Capture no steps as CUDA graphs.")
    ] = False,
    device: Annotated[str, flags.DEVICE.typer()] = flags.DEVICE.default,
    cpu_backend: Annotated[str, flags.CPU_BACKEND.typer()] = flags.CPU_BACKEND.default,
    cpu_isa: Annotated[str, flags.CPU_ISA.typer()] = flags.CPU_ISA.default,
    kv_cache_dtype: Annotated[str, flags.KV_CACHE_DTYPE.typer()] = flags.KV_CACHE_DTYPE.default,
    gpu_memory_utilization: Annotated[
        float, flags.GPU_MEMORY_UTILIZATION.typer()
    ] = flags.GPU_MEMORY_UTILIZATION.default,
    threads: Annotated[int | None, flags.THREADS.typer()] = None,
    tensor_parallel_size: Annotated[
        int, flags.TENSOR_PARALLEL_SIZE.typer()
    ] = flags.TENSOR_PARALLEL_SIZE.default,
    replica_id: Annotated[
        str | None,
        typer.Option(
            help="Names the replica this worker is of.", metavar="ID", show_default="one of its own"
        ),
    ] = None,
    metrics_host: Annotated[str, flags.METRICS_HOST.typer()] = flags.METRICS_HOST.default,
    metrics_port: Annotated[list[int], flags.WORKER_METRICS_PORT.typer()] = _METRICS_PORTS,
) -> None:
    """Runs a worker: it holds a model and its KV, dials the scheduler and executes its plans.

    With --tensor-parallel-size it starts that many ranks with torchrun; started by torchrun, it is
    one of them.
    """
    from worker import logs
    from worker.cores import size_thread_pools, usable_cores
    from worker.place import Place, end_with_parent
    from worker.primitive_caches import bound_primitive_caches

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

    trust = {
        flags.CLUSTER_TOKEN_FILE.option: cluster_token_file,
        flags.TLS_CERT.option: tls_cert,
        flags.TLS_KEY.option: tls_key,
        flags.TLS_CA.option: tls_ca,
    }
    Trust.read(token_file=cluster_token_file, cert=tls_cert, key=tls_key, ca=tls_ca)  # or raises
    link_arguments = [word for option, path in trust.items() if path for word in (option, path)]
    logs.configure(place.role)
    num_threads = threads or max(1, usable_cores() // place.local_world_size)
    # Before torch and numba load: they read it then, and only then.
    size_thread_pools(num_threads)
    bound_primitive_caches()

    from worker.options import Options, StartError
    from worker.process import run

    options = Options(
        model=model,
        scheduler=scheduler,
        link_arguments=link_arguments,
        served_model_name=served_model_name or model.resolve().name,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        kv_cache_memory=kv_cache_memory,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        dtype=dtype,
        quantization=quantization,
        packed_cache=_folder_of_packed() if packed_cache == "on" else None,
        load_format=load_format,
        pooling=pooling,
        enforce_eager=enforce_eager,
        device=device,
        cpu_backend=cpu_backend,
        cpu_isa=cpu_isa,
        kv_cache_dtype=kv_cache_dtype,
        gpu_memory_utilization=gpu_memory_utilization,
        num_threads=num_threads,
        threads_are_given=threads is not None,
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


def _folder_of_packed() -> Path | None:
    """None for a user who has no home."""
    try:
        return cache_dir() / "packed"
    except RuntimeError:
        return None


def _port_of(rank: int, ports: Sequence[int]) -> int:
    """The rank's own; beyond those given, they count up from the last."""
    if rank < len(ports) or not ports[-1]:
        return ports[min(rank, len(ports) - 1)]
    return ports[-1] + rank - len(ports) + 1


if __name__ == "__main__":
    run(app)
