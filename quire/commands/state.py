"""`quire state`: what the scheduler holds now."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quire.commands import flags

if TYPE_CHECKING:
    from rich.table import Table


def state(
    *,
    address: Annotated[
        str | None,
        typer.Option(help="A scheduler, like 127.0.0.1:50051; else that of the running stack."),
    ] = None,
    cluster_token_file: flags.ClusterTokenFile = None,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    tls_ca: flags.TlsCa = None,
    as_json: flags.JsonFlag = False,
) -> None:
    """Show a scheduler's totals: KV blocks, running, waiting, per replica.

    [bold]Examples[/bold]

    quire state
    quire state --address 127.0.0.1:50051 --json
    """
    from protos.trust import Trust
    from quire.client.state import fetch_state
    from quire.registry import the_address

    trust = Trust.read(token_file=cluster_token_file, cert=tls_cert, key=tls_key, ca=tls_ca)
    target = address or the_address(lambda s: s.scheduler, "name a scheduler with --address")
    totals = asyncio.run(fetch_state(target, trust=trust))
    if as_json:
        typer.echo(json.dumps(totals, indent=2))
    else:
        _print_state(totals)


def _print_state(totals: dict[str, Any]) -> None:
    from rich.console import Console

    from quire.commands.output import age, counted

    console = Console(highlight=False)
    name = totals["model"] or "no model yet"
    console.print(f"[bold]{name}[/] (up {age(totals['uptime_s'])})")
    console.print(
        f"  {totals['running']} running, {totals['waiting']} waiting, "
        f"{counted(totals['routers'], 'router')}, "
        f"{counted(totals['preemptions'], 'preemption')}, {counted(totals['replays'], 'replay')}"
    )
    blocks = totals["blocks"]
    console.print(
        f"  {counted(blocks['total'], 'block')}: {blocks['used']} used, {blocks['cached']} cached, "
        f"{blocks['free']} free"
    )
    console.print(
        f"  {counted(totals['generated_tokens'], 'token')} generated, "
        f"{totals['overrun_tokens']} over-run"
    )
    looked_up, hit = totals["prefix_query_tokens"], totals["prefix_hit_tokens"]
    share = f"{hit / looked_up:.0%}" if looked_up else "-"
    console.print(f"  prefix cache hit {share} of {looked_up} prompt tokens")
    if drafted := totals["draft_tokens"]:
        console.print(
            f"  {totals['accepted_tokens'] / drafted:.0%} accepted of "
            f"{counted(drafted, 'drafted token')}"
        )
    console.print(_replica_table(totals["replicas"]))


def _replica_table(replicas: "list[dict[str, Any]]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("REPLICA", no_wrap=True)
    for title in ("RUN", "WAIT", "USED", "CACHED", "FREE", "STEPS", "SEEN"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("DEVICE")  # the one that gives way in a narrow terminal
    for replica in replicas:
        blocks = replica["blocks"]
        counts = (replica["running"], replica["waiting"], blocks["used"], blocks["cached"])
        numbers = [str(number) for number in (*counts, blocks["free"], replica["steps"])]
        seen = f"{replica['last_seen_s']:.1f} s ago"
        device = Text(replica["device"], no_wrap=True, overflow="ellipsis")
        table.add_row(replica["replica"], *numbers, seen, device)
    return table
