"""`quire pull`: have a model on this disk before it is served."""

import typer

from quire.commands import flags


def pull(model: flags.ModelArgument) -> None:
    """Download and convert a model, and print the directory that it is in.

    `quire serve` does the same when it must; this is for images and volumes.

    [bold]Examples[/bold]

    quire pull smollm2
    python -m worker --model "$(quire pull smollm2)"
    """
    from quire.models import resolve
    from quire.progress import announce

    typer.echo(resolve(model, announce).path)
