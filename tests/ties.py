"""How often a tie decided an answer of the end-to-end tests, carried from tests to the summary.

It travels as a property of the tests' reports, so that it also arrives from xdist's processes.
"""

from collections.abc import Iterable

import pytest

TIES = "ties"
"""The property: answers of this test in which a tie decided a token."""


def total_ties(reports: Iterable[object]) -> int | None:
    """Over all tests; None when no test counts them."""
    counts = [
        int(str(value))
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, value in report.user_properties
        if name == TIES
    ]
    return sum(counts) if counts else None
