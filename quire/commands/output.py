"""How the commands look: logs of several processes in one column, tables, ages."""

import re
import sys
import time

from rich.console import Console
from rich.markup import escape

_OWN_FORMAT = re.compile(r"(\d\d:\d\d:\d\d) (\w[\w-]*) (\w+) (.*)")
_ROLE_COLOURS = {"scheduler": "magenta", "worker": "green", "router": "blue"}
_LEVEL_COLOURS = {"debug": "dim", "warning": "yellow", "error": "bold red", "critical": "bold red"}
_NAME_WIDTH = len("scheduler")


class LogPrinter:
    """Prints what the processes log, one aligned line each: time, name, level, text."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def __call__(self, name: str, line: str) -> None:
        colour = _ROLE_COLOURS.get(name.partition("-")[0], "white")
        who = f"[{colour}]{name:<{_NAME_WIDTH}}[/]"
        if match := _OWN_FORMAT.fullmatch(line):
            clock, _, level, text = match.groups()
            level_colour = _LEVEL_COLOURS.get(level.lower(), "none")
            what = f"[{level_colour}]{level.lower():<7}[/] {escape(text)}"
        else:
            clock, what = time.strftime("%H:%M:%S"), f"        {escape(line)}"
        self._console.print(f"[dim]{clock}[/] {who} {what}")


def counted(number: int, thing: str) -> str:
    """A number of things as people say it: "1 router", "2 routers"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def age(seconds: float) -> str:
    """A duration as people say it: "42 s", "7 min", "3.5 h", "2.1 d"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"
