"""How far loading is: a bar for a person at a terminal, a line at each end for a log."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


@contextlib.contextmanager
def loading(name: str, num_tensors: int) -> Iterator[Callable[[], None]]:
    """Says what is loaded and how long it took; call what it gives after each tensor."""
    start = time.perf_counter()
    if sys.stderr.isatty():
        with _bar(name, num_tensors) as advance:
            yield advance
    else:
        log.info("loading %s: %d tensors", name, num_tensors)
        yield lambda: None
    log.info("loaded %s in %.1f s", name, time.perf_counter() - start)


@contextlib.contextmanager
def _bar(name: str, num_tensors: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("loading {task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("tensors"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=num_tensors)
        yield lambda: progress.advance(task)
