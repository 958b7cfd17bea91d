"""`quire state`: what the scheduler holds now."""

import asyncio
import json
from typing import Annotated, Any

import typer

from quire.commands import flags


def state(
    *,
    address: Annotated[
        str | None,
        typer.Option(help="A scheduler, like 127.0.0.1:50051; else that of the running stack."),
    ] = None,
    as_json: flags.JsonFlag = False,
) -> None:
    """Show a scheduler's totals: KV blocks, running, waiting, per replica.

    [bold]Examples[/bold]

    quire state
    quire state --address 127.0.0.1:50051 --json
    """
    from quire.client import fetch_state

    totals = asyncio.run(fetch_state(address or _only_scheduler()))
    if as_json:
        typer.echo(json.dumps(totals, indent=2))
    else:
        _print_state(totals)


def _only_scheduler() -> str:
    from quire.errors import ConfigurationError
    from quire.registry import running_stacks

    addresses = [stack.scheduler for stack in running_stacks()]
    if len(addresses) != 1:
        found = "no stack runs" if not addresses else f"{len(addresses)} stacks run"
        names = "".join(f"\n  {address}" for address in addresses)
        raise ConfigurationError(f"{found} here; name a scheduler with --address{names}")
    return addresses[0]


def _print_state(totals: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from quire.commands.output import age

    console = Console(highlight=False)
    name = totals["model"] or "no model yet"
    console.print(f"[bold]{name}[/] (up {age(totals['uptime_s'])})")
    console.print(
        f"  running {totals['running']}, waiting {totals['waiting']}, "
        f"routers {totals['routers']}, preemptions {totals['preemptions']}, "
        f"replays {totals['replays']}"
    )
    looked_up, hit = totals["prefix_query_tokens"], totals["prefix_hit_tokens"]
    share = f"{hit / looked_up:.0%}" if looked_up else "-"
    console.print(
        f"  {totals['generated_tokens']} tokens generated, {totals['overrun_tokens']} over-run; "
        f"prefix cache hit {share} of {looked_up} prompt tokens"
    )
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("REPLICA", "DEVICE"):
        table.add_column(title)
    for title in ("RUNNING", "WAITING", "BLOCKS", "USED", "CACHED", "FREE", "STEPS", "LAST SEEN"):
        table.add_column(title, justify="right")
    for replica in totals["replicas"]:
        blocks = replica["blocks"]
        counts = (replica["running"], replica["waiting"], blocks["total"], blocks["used"])
        more = (blocks["cached"], blocks["free"], replica["steps"])
        seen = f"{replica['last_seen_s']:.1f} s"
        numbers = [str(number) for number in counts + more]
        table.add_row(replica["replica"], replica["device"], *numbers, seen)
    console.print(table)
