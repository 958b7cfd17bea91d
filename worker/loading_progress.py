"""How far loading is: a bar for a person at a terminal, a line at each end for a log.

What takes long only the first time says so only then.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

FIRST_STEPS = "running the first steps; what they compile is kept for the next start"

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
def unless_quick(line: str, after_s: float = 2.0) -> Iterator[None]:
    """Says what goes on if it takes longer than that; and then how long it took."""
    start = time.perf_counter()
    said = threading.Event()

    def say() -> None:
        said.set()
        log.info("%s", line)

    timer = threading.Timer(after_s, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if said.is_set():
        log.info("done in %.1f s", time.perf_counter() - start)


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
