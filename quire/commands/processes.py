"""`quire router | scheduler | worker`: one process of its own, with MODEL resolved first.

The flags are the process's: these commands become it.
"""

import os
import sys
from itertools import pairwise

import typer

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


def router(context: typer.Context) -> None:
    """Start one router: OpenAI HTTP and gRPC in front of a scheduler (see its own --help)."""
    _become("router", context.args)


def scheduler(context: typer.Context) -> None:
    """Start one scheduler: workers and routers dial it (see its own --help)."""
    _become("scheduler", context.args)


def worker(context: typer.Context) -> None:
    """Start one worker: it loads the model and dials a scheduler (see its own --help)."""
    _become("worker", context.args)


def _become(role: str, arguments: list[str]) -> None:
    from quire.process import quire_command, quire_environment

    command = quire_command(role, *_with_model_resolved(role, arguments))
    sys.stdout.flush()
    os.execve(command[0], command, quire_environment())


def _with_model_resolved(role: str, arguments: list[str]) -> list[str]:
    """The arguments with MODEL, given first or as --model, replaced by a directory."""
    model, rest = _split_model(role, arguments)
    if model is None:
        return arguments
    from quire.models import resolve
    from quire.progress import announce

    reads_weights = role == "worker" and not _asks_for_dummy(rest)
    resolved = resolve(model, announce, weights=reads_weights)
    given = any(argument.split("=")[0] == "--served-model-name" for argument in rest)
    name = [] if given else ["--served-model-name", resolved.name]
    return ["--model", str(resolved.path), *name, *rest]


def _split_model(role: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    if role != "scheduler" and arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    for index, argument in enumerate(arguments):
        if argument.startswith("--model="):
            return argument.partition("=")[2], arguments[:index] + arguments[index + 1 :]
        if argument == "--model" and index + 1 < len(arguments):
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
    return None, arguments


def _asks_for_dummy(arguments: list[str]) -> bool:
    """Whether the worker is to make random weights instead of reading some."""
    words = [word for argument in arguments for word in argument.split("=")]
    return ("--load-format", "dummy") in pairwise(words)
