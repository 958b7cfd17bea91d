"""What a person waiting at a terminal sees: one line that says what takes time, and a bar."""

import contextlib
import sys
from collections.abc import Callable, Iterator


def announce(line: str) -> None:
    """Says on standard error what takes time."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(total: int, *, visible: bool) -> Iterator[Callable[[int], None]]:
    """A bar over `total` prompts; call what it gives, with the output tokens, for each one done."""
    if not visible or not sys.stderr.isatty():
        yield lambda tokens: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("generating"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:>7.1f} tokens/s"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, rate=0.0)
        generated = 0

        def advance(tokens: int) -> None:
            nonlocal generated
            generated += tokens
            elapsed = bar.tasks[task].elapsed or 0.0
            bar.update(task, advance=1, rate=generated / elapsed if elapsed else 0.0)

        yield advance
