"""`quire ps`: the processes of the stacks that run on this machine."""

import dataclasses
import json
import time
from typing import TYPE_CHECKING

import typer

from quire.commands import flags

if TYPE_CHECKING:
    from quire.registry import StackRecord


def ps(*, as_json: flags.JsonFlag = False) -> None:
    """List the processes of running stacks: role, pid, address, state.

    [bold]Examples[/bold]

    quire ps
    quire ps --json | jq -r '.[] | select(.role == "worker").pid'
    """
    from quire.registry import running_stacks

    stacks = running_stacks()
    if as_json:
        rows = [
            dataclasses.asdict(process) | {"model": stack.model, "supervisor_pid": stack.pid}
            for stack in stacks
            for process in stack.processes
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    if not stacks:
        typer.echo("no stack runs here (start one with: quire serve smollm2)")
        return
    _print_tables(stacks)


def _print_tables(stacks: "list[StackRecord]") -> None:
    from rich.console import Console
    from rich.table import Table

    from quire.commands.output import age

    console = Console(highlight=False)
    for stack in stacks:
        up = age(time.time() - stack.started_at)
        title = f"[bold]{stack.model}[/] at {stack.url} (up {up}, supervisor {stack.pid})"
        console.print(title, soft_wrap=True)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("NAME", "PID", "STATE", "AGE", "RESTARTS", "METRICS"):
            table.add_column(title, justify="right" if title in ("PID", "RESTARTS") else "left")
        for process in stack.processes:
            since = age(time.time() - process.started_at) if process.started_at else "-"
            colour = "green" if process.state == "ready" else "yellow"
            table.add_row(
                process.name,
                str(process.pid or "-"),
                f"[{colour}]{process.state}[/]",
                since,
                str(process.restarts),
                process.metrics or "-",
            )
        console.print(table)
