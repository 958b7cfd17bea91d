"""`make fuzz`: how long it takes, and what was tried.

    QUIRE_FUZZ_SECONDS=600 pytest -p tests.fuzz.rounds …

hypothesis runs a number of examples, however long that takes. Here each of its tests is run again
and again, with other examples each time, until its even share of the time is over; at the end each
says how many it has tried. A plugin, since a conftest is told of the tests in its own folder alone.
"""

import os
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

SECONDS = "QUIRE_FUZZ_SECONDS"
TRIED = "examples tried"


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is collected shares the time, on as many processes as there are."""
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    fuzzed = [item for item in session.items if is_fuzzed(item)]
    if fuzzed:
        share = float(os.environ[SECONDS]) * num_processes / len(fuzzed)
        session.config.stash[_SHARE_S] = share


_SHARE_S = pytest.StashKey[float]()


def is_fuzzed(item: pytest.Item) -> bool:
    """Whether hypothesis makes its examples."""
    return hasattr(getattr(item, "obj", None), "hypothesis")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Once as always, and again for as long as there is time."""
    if not is_fuzzed(pyfuncitem):
        return (yield)
    began_at = time.monotonic()
    handle: Any = pyfuncitem.obj.hypothesis
    tried = 0
    inner: Callable[..., object] = handle.inner_test

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal tried
        tried += 1
        return inner(*args, **kwargs)

    handle.inner_test = counted
    try:
        said = yield
        given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        while time.monotonic() - began_at < pyfuncitem.config.stash[_SHARE_S]:
            pyfuncitem.obj(**given)
    finally:
        handle.inner_test = inner
        pyfuncitem.user_properties.append((TRIED, tried))
    return said


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many each has tried, and all of them."""
    tried = {
        report.nodeid: dict(report.user_properties).get(TRIED)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
    }
    counts = {name: count for name, count in tried.items() if isinstance(count, int)}
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(f"{count:10,} examples  {name}")
    terminalreporter.write_line(f"{sum(counts.values()):10,} examples in whole")
