"""`quire bench`: load on a server, and what it felt like."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quire.commands import flags

if TYPE_CHECKING:
    from rich.table import Table

    from quire.bench.load import Load, Run
    from quire.bench.report import Report
    from quire.commands.server import Server

app = typer.Typer(
    help="Measure a running server, or one started for MODEL.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

_ModelOrNone = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help=flags.MODEL_HELP, show_default=False)
]
_NumPrompts = Annotated[int, typer.Option(min=1, help="Requests to send.")]
_InputLen = Annotated[int, typer.Option(min=1, help="Tokens per prompt.")]
_OutputLen = Annotated[int, typer.Option(min=1, help="Tokens per answer.")]
_NumWarmups = Annotated[int, typer.Option(min=0, help="Requests before the clock starts.")]
_MaxConcurrency = Annotated[
    int | None, typer.Option(min=1, help="Requests in flight, at most.", show_default=False)
]
_Seed = Annotated[
    int | None,
    typer.Option(help="Of the prompts; else each run draws one.", show_default=False),
]
_Save = Annotated[
    Path | None, typer.Option(help="Write settings, machine and figures as JSON.", dir_okay=False)
]


@app.command()
def throughput(
    context: typer.Context,
    model: _ModelOrNone = None,
    *,
    url: flags.UrlFlag = None,
    api_key: flags.ApiKey = None,
    ssl_ca_certs: flags.CaCerts = None,
    num_prompts: _NumPrompts = 64,
    input_len: _InputLen = 256,
    output_len: _OutputLen = 128,
    max_concurrency: _MaxConcurrency = None,
    num_warmups: _NumWarmups = 1,
    seed: _Seed = None,
    save: _Save = None,
    replicas: flags.Replicas = 1,
    max_model_len: flags.MaxModelLen = None,
    device: flags.DeviceFlag = None,
    cpu_backend: flags.CpuBackend = None,
    cpu_isa: flags.CpuIsa = None,
    dtype: flags.DtypeFlag = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    quantization: flags.Quantization = None,
    packed_cache: flags.PackedCache = None,
    threads: flags.Threads = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxNumBatchedTokens = None,
) -> None:
    """Output tokens per second when every request is there at once.

    [bold]Examples[/bold]

    quire bench throughput smollm2 --num-prompts 32
    quire bench throughput --url http://127.0.0.1:8000 --save result.json
    """
    _bench(context, latencies=False)


@app.command()
def serve(
    context: typer.Context,
    model: _ModelOrNone = None,
    *,
    url: flags.UrlFlag = None,
    api_key: flags.ApiKey = None,
    ssl_ca_certs: flags.CaCerts = None,
    num_prompts: _NumPrompts = 64,
    input_len: _InputLen = 256,
    output_len: _OutputLen = 128,
    request_rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests per second (Poisson).", show_default=False),
    ] = None,
    max_concurrency: _MaxConcurrency = None,
    num_warmups: _NumWarmups = 1,
    seed: _Seed = None,
    save: _Save = None,
    replicas: flags.Replicas = 1,
    max_model_len: flags.MaxModelLen = None,
    device: flags.DeviceFlag = None,
    cpu_backend: flags.CpuBackend = None,
    cpu_isa: flags.CpuIsa = None,
    dtype: flags.DtypeFlag = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    quantization: flags.Quantization = None,
    packed_cache: flags.PackedCache = None,
    threads: flags.Threads = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxNumBatchedTokens = None,
) -> None:
    """Latencies under load: TTFT, ITL, TPOT and E2EL percentiles, with rates.

    [bold]Examples[/bold]

    quire bench serve --url http://127.0.0.1:8000 --max-concurrency 8
    quire bench serve smollm2 --request-rate 2 --num-prompts 100 --save result.json
    """
    _bench(context, latencies=True)


def _bench(context: typer.Context, *, latencies: bool) -> None:
    from quire.bench.report import Report, as_json
    from quire.commands.server import server
    from quire.options import StackOptions
    from quire.progress import announce

    given = context.params
    options = StackOptions.among(given)
    ca_certs = given["ssl_ca_certs"]
    with server(given["model"], given["url"], given["api_key"], options, ca_certs) as target:
        if not given["model"]:
            announce(f"measuring {target.model} at {target.endpoint.url}")
        run = _run(target, _load(given, target.model))
    report = Report.of(run)
    _print_report(run, report, latencies=latencies)
    if save := given["save"]:
        save.write_text(json.dumps(as_json(run, report, target.endpoint.url), indent=2) + "\n")
        typer.echo(f"saved {save}")
    if report.failed:
        raise typer.Exit(1)


def _load(given: dict[str, object], model: str) -> "Load":
    import dataclasses
    import secrets

    from quire.bench.load import Load

    names = {field.name for field in dataclasses.fields(Load)}
    chosen = {name: value for name, value in given.items() if name in names}
    seed = given["seed"] if given["seed"] is not None else secrets.randbits(32)
    return Load(**(chosen | {"model": model, "seed": seed}))  # type: ignore[arg-type]


def _run(target: "Server", load: "Load") -> "Run":
    import asyncio

    from quire.bench.load import run_load
    from quire.progress import progress

    with progress(load.num_prompts, visible=True) as advance:
        return asyncio.run(run_load(target.endpoint, load, advance))


def _print_report(run: "Run", report: "Report", *, latencies: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    load = run.load
    rate = f"{load.request_rate:g} requests/s" if load.request_rate else "all at once"
    limit = f", at most {load.max_concurrency} in flight" if load.max_concurrency else ""
    console.print(
        f"\n[bold]{load.model}[/]  {load.num_prompts} prompts of {load.input_len} tokens, "
        f"{load.output_len} tokens out\n[dim]{rate}{limit}; prompts of seed {load.seed}[/]\n"
    )
    figures = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    figures.add_column()
    figures.add_column(justify="right")
    failed = f"[bold red]{report.failed}[/]" if report.failed else "0"
    for name, value in (
        ("completed", f"{report.completed}"),
        ("failed", failed),
        ("most in flight", f"{report.max_in_flight}"),
        ("duration", f"{report.duration_s:.2f} s"),
        ("requests/s", f"{report.requests_per_s:.2f}"),
        ("output tokens/s", f"[bold]{report.output_tokens_per_s:.1f}[/]"),
        ("total tokens/s", f"{report.total_tokens_per_s:.1f}"),
    ):
        figures.add_row(name, value)
    console.print(figures)
    if latencies:
        console.print()
        console.print(_latency_table(report))
    console.print()
    for error in sorted({trace.error for trace in run.traces if trace.error})[:3]:
        console.print(f"[red]error:[/] {error}", soft_wrap=True)


def _latency_table(report: "Report") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 2))
    table.add_column("milliseconds")
    for title in ("mean", "p50", "p90", "p99"):
        table.add_column(title, justify="right")
    rows = (
        ("TTFT  first token", report.ttft),
        ("ITL   between tokens", report.itl),
        ("TPOT  per output token", report.tpot),
        ("E2EL  whole answer", report.e2el),
    )
    for name, latency in rows:
        if latency is None:
            table.add_row(name, *["-"] * 4)
        else:
            values = (latency.mean_ms, latency.p50_ms, latency.p90_ms, latency.p99_ms)
            table.add_row(name, *(f"{value:.1f}" for value in values))
    return table
