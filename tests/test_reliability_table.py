"""What docs/reliability.md says is shown somewhere is shown there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
STATES = {"tested", "by construction", "not applicable", "not tested"}

_NAMED = re.compile(r"((?:`test_\w+`(?: \([a-z]+\))?(?:, )?)+) in \[\w+\]\(([^)]+)\)")
_LINK = re.compile(r"\]\((\.\./[^)#]+)\)")
_TEST = re.compile(r"`(test_\w+)`")


def test_every_link_leads_somewhere() -> None:
    links = _LINK.findall(DOCUMENT.read_text())
    assert len(links) > 100
    assert [link for link in links if not (DOCUMENT.parent / link).exists()] == []


def test_every_named_test_is_in_the_file_that_is_linked() -> None:
    named = [
        (test, path)
        for tests, path in _NAMED.findall(DOCUMENT.read_text())
        for test in _TEST.findall(tests)
    ]
    assert len(named) > 80
    missing = [
        (test, path)
        for test, path in named
        if f"def {test}(" not in (DOCUMENT.parent / path).read_text()
    ]
    assert missing == []


def test_no_test_is_named_without_its_file() -> None:
    """But in prose, where a sentence has just linked it."""
    text = DOCUMENT.read_text()
    linked = [test for tests, _ in _NAMED.findall(text) for test in _TEST.findall(tests)]
    alone = set(_TEST.findall(text)) - set(linked)
    assert alone == {"test_there_are_enough_of_them"}


def test_every_fault_has_a_row_and_every_row_a_state() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOCUMENT.read_text().splitlines()
        if re.match(r"\| F\d\d", line)
    ]
    assert {row[3] for row in rows} <= STATES
    ids = [fault for row in rows for fault in row[0].split(", ")]
    assert ids == [f"F{number:02}" for number in range(1, 47)]
