"""`quire serve`: the whole stack on this machine, supervised."""

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING

import typer

from protos.flags import DRAIN_TIMEOUT, HANG_TIMEOUT, HOST, STACK_GRPC_PORT, STACK_PORT
from quire.commands import flags
from quire.commands.hangup import Terminal
from quire.supervisor import first_of

_INTERRUPTED = 130
"""The exit code of what Ctrl-C has ended before it was done, as a shell has it."""

if TYPE_CHECKING:
    from quire.door import TcpDoor
    from quire.stack import Stack


def serve(
    context: typer.Context,
    model: flags.ModelOrNone = None,
    *,
    named_model: flags.NamedModel = None,
    host: flags.Host = HOST.default,
    port: flags.Port = STACK_PORT.default,
    grpc_port: flags.GrpcPort = STACK_GRPC_PORT.default,
    api_key: flags.ApiKeys = None,
    api_key_file: flags.ApiKeyFile = None,
    share_prefix_cache: flags.SharePrefixCache = False,
    ssl_certfile: flags.SslCertfile = None,
    ssl_keyfile: flags.SslKeyfile = None,
    ssl_ca_certs: flags.SslCaCerts = None,
    served_model_name: flags.ServedModelName = None,
    chat_template: flags.ChatTemplate = None,
    tool_call_parser: flags.ToolCallParser = None,
    reasoning_parser: flags.ReasoningParser = None,
    max_body_bytes: flags.MaxBodyBytes = None,
    limit: flags.Limit = None,
    max_in_flight: flags.MaxInFlight = None,
    seed: flags.Seed = None,
    router_processes: flags.RouterProcesses = 1,
    max_stored_bytes: flags.MaxStoredBytes = None,
    response_ttl: flags.ResponseTtl = None,
    allowed_hosts: flags.AllowedHosts = None,
    allowed_origins: flags.AllowedOrigins = None,
    allowed_methods: flags.AllowedMethods = None,
    allowed_headers: flags.AllowedHeaders = None,
    allow_credentials: flags.AllowCredentials = False,
    replicas: flags.Replicas = 1,
    tensor_parallel_size: flags.TensorParallelSize = None,
    device: flags.DeviceFlag = None,
    cpu_backend: flags.CpuBackend = None,
    cpu_isa: flags.CpuIsa = None,
    dtype: flags.DtypeFlag = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    quantization: flags.Quantization = None,
    packed_cache: flags.PackedCache = None,
    load_format: flags.LoadFormatFlag = None,
    pooling: flags.PoolingFlag = None,
    enforce_eager: flags.EnforceEager = False,
    gpu_memory_utilization: flags.GpuMemoryUtilization = None,
    threads: flags.Threads = None,
    max_model_len: flags.MaxModelLen = None,
    block_size: flags.BlockSize = None,
    num_blocks: flags.NumBlocks = None,
    kv_cache_memory: flags.KvCacheMemory = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxNumBatchedTokens = None,
    scheduling_policy: flags.SchedulingPolicy = None,
    priority_aging: flags.PriorityAging = None,
    enable_prefix_caching: flags.PrefixCaching = True,
    watermark: flags.Watermark = None,
    step_timeout: flags.StepTimeout = None,
    max_queued: flags.MaxQueued = None,
    max_queued_tokens: flags.MaxQueuedTokens = None,
    max_losses: flags.MaxLosses = None,
    speculative_ngram: flags.SpeculativeNgram = None,
    metrics_port: flags.MetricsPort = None,
    drain_timeout: flags.DrainTimeout = DRAIN_TIMEOUT.default,
    hang_timeout: flags.HangTimeout = HANG_TIMEOUT.default,
) -> None:
    """Serve a model: start scheduler, workers and router, and keep them running.

    Prints the URLs and a curl line once a token has really been generated.
    Ctrl-C finishes what is in flight and stops all processes; a second
    Ctrl-C stops them at once, with exit code 130.
    SIGHUP (`kill -HUP PID`) has the files of keys and of certificates for
    clients read again; what is in flight goes on.

    [bold]Examples[/bold]

    quire serve smollm2
    quire serve ./Llama-3.2-1B-Instruct --port 8080 --api-key secret
    quire serve model.gguf --replicas 2 --threads 1 --max-model-len 2048
    quire serve minilm
    """
    from gateway.keys import read_keys
    from protos.trust import check_pair
    from quire.door import TcpDoor
    from quire.models import check, resolve
    from quire.options import StackOptions
    from quire.preflight import check_machine
    from quire.progress import announce
    from quire.stack import Stack, check_ports

    options = StackOptions.among(context.params)
    model = _the_model(model, named_model)
    check(model, weights=options.needs_weights)
    keys = read_keys(api_key, api_key_file)
    if ssl_certfile is not None:
        check_pair("--ssl-certfile", ssl_certfile, "--ssl-keyfile", ssl_keyfile or ssl_certfile)
    door = TcpDoor(
        host,
        port,
        grpc_port,
        keys,
        api_key_file,
        share_prefix_cache,
        ssl_certfile,
        ssl_keyfile,
        ssl_ca_certs,
    )
    check_machine(options)
    check_ports(options, door)  # before minutes of downloading
    resolved = resolve(model, announce, weights=options.needs_weights)

    async def run() -> bool:
        from quire.commands.output import LogPrinter

        stack = Stack(resolved, options, door=door, log=LogPrinter())
        announce(f"starting {options.num_processes} processes for {resolved.path}")
        session = _Session(stack, door)
        await session.run()
        return session.was_cut

    if asyncio.run(run()):
        raise typer.Exit(_INTERRUPTED)


def _the_model(model: str | None, named: str | None) -> str:
    """Raises ConfigurationError if none is given, or two."""
    from quire.errors import ConfigurationError

    if model is not None and named is not None:
        raise ConfigurationError(f"give MODEL or --model, not both: {model} and {named}")
    if (chosen := model or named) is None:
        raise ConfigurationError("MODEL is missing; the default one is: quire serve smollm2")
    return chosen


class _Session:
    """A stack in the foreground, from its start to the signal that ends it."""

    def __init__(self, stack: "Stack", door: "TcpDoor") -> None:
        self._stack = stack
        self._door = door
        self._asked = asyncio.Event()
        self._asked_again = asyncio.Event()
        self._terminal = Terminal()
        self.was_cut = False
        """Told twice, it has ended at once, whatever was in flight."""

    async def run(self) -> None:
        """Returns after a clean end. Raises StackFailed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            await self._serve()
        finally:
            await self._end()

    async def _serve(self) -> None:
        from quire.client.state import fetch_state
        from quire.errors import RequestFailed

        stack = self._stack
        await stack.start()
        ready = asyncio.create_task(stack.until_ready())
        asked = asyncio.create_task(self._asked.wait())
        await first_of(ready, asked)
        if self._asked.is_set():
            ready.cancel()
            return
        ready.result()
        only_embeds = False
        with contextlib.suppress(RequestFailed):  # it serves; the example may be the usual one
            only_embeds = (await fetch_state(stack.scheduler))["only_embeds"]
        _show_ready(stack, self._door, only_embeds=only_embeds)
        await first_of(asked, stack.failed)
        asked.cancel()
        if stack.failed.done():
            raise stack.failed.result()

    async def _end(self) -> None:
        from quire.progress import announce

        if not self._stack.failed.done():
            announce("finishing what is in flight; once more to stop at once")
        drain = asyncio.create_task(self._stack.stop())
        again = asyncio.create_task(self._asked_again.wait())
        await first_of(drain, again)
        again.cancel()
        if not drain.done():
            self.was_cut = True
            await self._stack.cut()
        await drain
        announce("stopped")

    def _on_hangup(self) -> None:
        from quire.progress import announce

        if self._terminal.is_gone():
            self._on_signal()
            return
        self._stack.renew()
        announce("told the routers to read keys and certificates again")

    def _on_signal(self) -> None:
        (self._asked_again if self._asked.is_set() else self._asked).set()


def _show_ready(stack: "Stack", door: "TcpDoor", *, only_embeds: bool) -> None:
    """The URLs, and a request that works as it is."""
    import json

    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    text = "What is the capital of France?"
    path, question = (
        "chat/completions",
        {
            "model": stack.name,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 64,
            "temperature": 0,
        },
    )
    if only_embeds:
        path, question = "embeddings", {"model": stack.name, "input": text}
    key = ' -H "Authorization: Bearer $QUIRE_API_KEY"' if door.api_keys else ""
    processes = stack.record().processes
    metrics = {process.name: process.metrics for process in processes if process.metrics}
    seconds = time.time() - stack.started_at
    console.print(f"\n[bold green]✓[/] [bold]{escape(stack.name)}[/] is ready ({seconds:.1f} s)\n")
    console.print(f"  OpenAI API  [cyan]{door.url}/v1[/]")
    console.print(f"  gRPC        [cyan]{door.grpc}[/]")
    for name, url in metrics.items():
        console.print(f"  metrics     [cyan]{url}[/] [dim]({name})[/]")
    with_key = " (with the key in QUIRE_API_KEY)" if door.api_keys else ""
    console.print(f"\n  Try it{with_key}:\n")
    console.print(f"    curl {door.url}/v1/{path}{key} \\", markup=False)
    console.print("      -H 'Content-Type: application/json' \\", markup=False)
    console.print(f"      -d '{json.dumps(question)}'\n", markup=False)
    console.print("  Ctrl-C finishes what is in flight and stops.\n")
