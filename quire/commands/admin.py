"""`quire drain` and `quire cache reset`: what an operator does to a scheduler."""

import asyncio
from typing import Annotated

import typer

from quire.commands import flags

cache = typer.Typer(help="Look after the prefix cache.", no_args_is_help=True)

_Address = Annotated[
    str | None,
    typer.Option(
        help="A scheduler's --admin-listen, like 127.0.0.1:50052; else that of the running stack.",
        metavar="ADDR",
        show_default=False,
    ),
]


def drain(
    *,
    address: Annotated[
        str | None,
        typer.Option(
            help="The scheduler's --admin-listen, like 127.0.0.1:50052.",
            metavar="ADDR",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Wait so long at most, and exit with 1; the scheduler goes on draining.",
            metavar="SECONDS",
            show_default="as long as it takes",
        ),
    ] = None,
    cluster_token_file: flags.ClusterTokenFile = None,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    tls_ca: flags.TlsCa = None,
) -> None:
    """Give a cell up for good: refuse new requests, finish what runs, send its workers away.

    For a scheduler and workers that were started one by one. It ends the workers; the scheduler
    stays, and refuses what comes, until it is ended, too.

    What `quire serve` has started it would start again, so its own are refused here: Ctrl-C ends
    all of them and finishes what runs. To restart one process alone, as for an upgrade, end it with
    `kill PID`, as `quire ps` lists it: what it computes goes on elsewhere, or when it is back.

    [bold]Examples[/bold]

    quire drain --address 127.0.0.1:50052
    quire drain --address unix:/run/quire/admin.sock --timeout 60
    """
    from protos.trust import Trust
    from quire.client.admin import drain as ask
    from quire.progress import announce

    trust = Trust.read(token_file=cluster_token_file, cert=tls_cert, key=tls_key, ca=tls_ca)
    target = _given_up(address)
    announce("waiting until nothing is in flight")
    asyncio.run(ask(target, trust, timeout))
    typer.echo("drained")


@cache.command()
def reset(
    *,
    address: _Address = None,
    cluster_token_file: flags.ClusterTokenFile = None,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    tls_ca: flags.TlsCa = None,
) -> None:
    """Forget every cached prefix; what runs goes on.

    [bold]Examples[/bold]

    quire cache reset
    quire cache reset --address 127.0.0.1:50052
    """
    from protos.trust import Trust
    from quire.client.admin import reset_prefix_cache

    trust = Trust.read(token_file=cluster_token_file, cert=tls_cert, key=tls_key, ca=tls_ca)
    num_blocks = asyncio.run(reset_prefix_cache(address or _the_admin(), trust))
    typer.echo(f"{num_blocks} block{'s' * (num_blocks != 1)} forgotten")


def _given_up(address: str | None) -> str:
    """The address of the cell. Raises ConfigurationError for one whose workers would come back."""
    from quire.errors import ConfigurationError
    from quire.registry import running_stacks, the_served_stack

    named = (stack for stack in running_stacks() if stack.admin == address)
    kept = the_served_stack() if address is None else next(named, None)
    if kept is not None:
        raise ConfigurationError(
            f"the stack of {kept.model} is kept running by process {kept.pid}, which would start "
            f"its workers again; `quire serve` finishes what runs and ends with Ctrl-C or `kill "
            f"{kept.pid}`"
        )
    return address or _the_admin()


def _the_admin() -> str:
    from quire.registry import the_address

    return the_address(lambda stack: stack.admin, "name a scheduler with --address")
