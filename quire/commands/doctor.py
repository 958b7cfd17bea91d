"""`quire doctor`: can this machine serve?"""

from typing import Annotated

import typer

from protos.flags import STACK_GRPC_PORT, STACK_PORT

_PORTS = (STACK_PORT.default, STACK_GRPC_PORT.default)
_SHOWN = ", ".join(map(str, _PORTS))
_MARKS = {"good": "[green]✓[/]", "note": "[yellow]![/]", "bad": "[bold red]✗[/]"}


def doctor(
    *,
    port: Annotated[
        list[int] | None,
        STACK_PORT.typer(help=rf"Ports that shall be free (repeatable). \[default: {_SHOWN}]"),
    ] = None,
) -> None:
    """Check what this machine has: packages, torch, CPU, memory, ports, cache.

    ✓ is well, ! is worth knowing, ✗ must be cured before `quire serve` can
    work; with any ✗ the exit code is 1.

    [bold]Examples[/bold]

    quire doctor
    quire doctor --port 8080
    """
    from rich.console import Console
    from rich.markup import escape

    from quire.doctor import Verdict, examine

    console = Console(highlight=False, soft_wrap=True)
    bad = 0
    for finding in examine(tuple(port or _PORTS)):
        bad += finding.verdict is Verdict.BAD
        mark = _MARKS[finding.verdict]
        console.print(f"{mark} {finding.subject:<18} {escape(finding.detail)}")
    if bad:
        console.print(f"\n[bold red]{bad} must be cured[/] before `quire serve` can work")
        raise typer.Exit(1)
    console.print("\n[green]This machine can serve[/]: quire serve smollm2")
