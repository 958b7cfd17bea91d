"""The `quire` command: one function per command, in `quire/commands`."""

import sys
from typing import Annotated

import typer

from protos.command_line import run
from quire.commands import (
    admin,
    bench,
    chat,
    doctor,
    flags,
    generate,
    processes,
    ps,
    pull,
    serve,
    state,
)
from quire.errors import QuireError

_SERVE, _ASK, _LOOK = "Serve", "Ask", "Look"

app = typer.Typer(
    name="quire",
    help=(
        "Serve large language models: a router, a scheduler, and workers.\n\n"
        "[bold]Start here[/bold]\n\n"
        "quire serve smollm2        serve the default model at http://127.0.0.1:8000/v1\n"
        "quire chat                 talk to it from another terminal\n"
        "quire doctor               check this machine first"
    ),
    epilog="`quire COMMAND --help` shows a command's flags and examples.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from quire.version import __version__

        typer.echo(f"quire {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


app.command(rich_help_panel=_SERVE)(serve.serve)
for _process in (processes.router, processes.scheduler, processes.worker):
    app.command(
        rich_help_panel=_SERVE,
        context_settings=dict(processes.PASS_THROUGH),
        add_help_option=False,
    )(_process)
app.command(rich_help_panel=_SERVE)(pull.pull)
app.command(rich_help_panel=_ASK)(chat.chat)
app.command(rich_help_panel=_ASK)(generate.generate)
app.add_typer(bench.app, name="bench", rich_help_panel=_ASK)
app.command(rich_help_panel=_SERVE)(admin.drain)
app.add_typer(admin.cache, name="cache", rich_help_panel=_SERVE)
app.command(rich_help_panel=_LOOK)(ps.ps)
app.command(rich_help_panel=_LOOK)(state.state)
app.command(rich_help_panel=_LOOK)(doctor.doctor)


def main() -> None:
    """Runs the command; an error of ours is one line on standard error and its exit code."""
    try:
        run(app, flags.ELSEWHERE)
    except QuireError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read our output left
        sys.exit(1)
