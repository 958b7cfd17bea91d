"""A plugin of pytest's: writes what became of each test as it ends, and takes one share of them.

    pytest -p bench.gpu.outcomes --outcomes FILE --share 2/6

A share is a run of neighbours: they often need the same kernels, which are compiled once for them.
What was written stays when the process is stopped, or ends with its device.

Lines of the file are JSON: {"selected": count}, {"begun": id}, {"id", "outcome", "seconds", "why"}.
"""

import json
from pathlib import Path
from typing import Any

import pytest

_LONGEST_REASON = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of this plugin."""
    parser.addoption("--outcomes", type=Path, required=True)
    parser.addoption("--share", default="1/1", help="which part of how many")


def pytest_configure(config: pytest.Config) -> None:
    """Begins the file."""
    config.pluginmanager.register(_Outcomes(config.getoption("outcomes")))


@pytest.hookimpl(trylast=True)  # once the tests are in their final order
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves one share."""
    number, count = map(int, config.getoption("share").split("/"))
    items[:] = items[share(len(items), number, count)]


def share(length: int, number: int, count: int) -> slice:
    """Part `number` of `count`, from 1 on; together they are everything, each about as long."""
    return slice((number - 1) * length // count, number * length // count)


class _Outcomes:
    def __init__(self, file: Path) -> None:
        self._file = file
        file.write_text("")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(selected=len(session.items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(id=report.nodeid, outcome="failed", seconds=0.0, why=_reason(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(begun=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(
                id=report.nodeid,
                outcome=report.outcome,
                seconds=report.duration,
                why="" if report.passed else _reason(report),
            )

    def _write(self, **line: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """In one line, what was raised or why it was skipped."""
    found = report.longrepr
    if isinstance(found, tuple):  # of a skipped test: file, line, reason
        return found[2]
    crash = getattr(found, "reprcrash", None)
    lines = (crash.message if crash is not None else str(found)).strip().splitlines() or [""]
    said = lines[0] if crash is not None else lines[-1]
    return said[:_LONGEST_REASON]
