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
    address: _Address = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Give up waiting after so long; the scheduler goes on draining.",
            metavar="SECONDS",
            show_default="as long as it takes",
        ),
    ] = None,
    cluster_token_file: flags.ClusterTokenFile = None,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    tls_ca: flags.TlsCa = None,
) -> None:
    """Give a cell up: refuse new requests, finish what runs, send its workers away.

    For processes that were started one by one; Ctrl-C does it for `quire serve`.

    [bold]Examples[/bold]

    quire drain --address 127.0.0.1:50052
    quire drain --address unix:/run/quire/admin.sock --timeout 60
    """
    from protos.trust import Trust
    from quire.client.admin import drain as ask
    from quire.progress import announce

    trust = Trust.read(token_file=cluster_token_file, cert=tls_cert, key=tls_key, ca=tls_ca)
    target = address or _the_admin()
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


def _the_admin() -> str:
    from quire.registry import the_address

    return the_address(lambda stack: stack.admin, "name a scheduler with --address")
