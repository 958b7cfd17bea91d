"""How a command line is read, of every program of ours.

An underscore in an option is a hyphen, as in vLLM: --max_model_len. What cannot be read is one line
on standard error, and exit code 2:

    error: there is no option --max-len; did you mean --max-model-len?
"""

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

import typer

from protos.flag import FlagError

_NOT_READABLE = cast(type[Exception], typer.BadParameter.__mro__[2])
"""click's ClickException, of which typer has a copy of its own or not, by its version."""


def run(app: typer.Typer, elsewhere: Mapping[str, str] | None = None) -> None:
    """Runs a command line and ends the process, unless a command raises.

    `elsewhere` are options that other servers have, each with what there is in its place.
    """
    try:
        code = app(standalone_mode=False, token_normalize_func=_with_hyphens)
    except FlagError as error:
        _refuse(str(error))
    except typer.Abort:
        sys.exit(1)
    except _NOT_READABLE as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # help has been shown
            _refuse(_said_of(error, elsewhere or {}))
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _with_hyphens(name: str) -> str:
    return name.replace("_", "-")


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _said_of(error: Any, elsewhere: Mapping[str, str]) -> str:
    option = getattr(error, "option_name", None)
    if option is None or not error.message.startswith("No such option"):
        message = str(error.format_message()).strip().rstrip(".")
        return " ".join((message[:1].lower() + message[1:]).split())
    if (name := _with_hyphens(option)) in elsewhere:
        return f"there is no option {name}; {elsewhere[name]}"
    words = [word for param in error.ctx.command.params for word in param.opts]
    known = [word.removeprefix("--") for word in words if word.startswith("--")]
    asked = name.removeprefix("--")
    fuller = [word for word in known if set(asked.split("-")) < set(word.split("-"))]
    near = get_close_matches(asked, fuller, 1) or get_close_matches(asked, known, 1)
    hint = f"did you mean --{near[0]}?" if near else "--help shows those there are"
    return f"there is no option {option}; {hint}"
