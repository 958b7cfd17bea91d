"""What docs/reliability.md says is shown somewhere is shown there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
SHOWN = {"tested", "tested at length", "tested where possible"}
STATES = {*SHOWN, "by construction", "not applicable", "not tested"}

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


def rows() -> list[list[str]]:
    """The cells of every row that has a state."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if STATES & set(row)]


def test_every_fault_has_a_row_and_every_row_a_state() -> None:
    faults = [row for row in rows() if re.match(r"F\d\d", row[0])]
    assert {row[3] for row in faults} <= STATES
    ids = [fault for row in faults for fault in row[0].split(", ")]
    assert ids == [f"F{number:02}" for number in range(1, 47)]


def test_what_is_tested_names_a_test_that_runs_when_its_state_says() -> None:
    for row in rows():
        [state] = STATES & set(row)
        named = [
            (test, path) for tests, path in _NAMED.findall(row[-1]) for test in _TEST.findall(tests)
        ]
        linked = [path for path in _LINK.findall(row[-1]) if Path(path).name.startswith("test_")]
        if state in SHOWN:
            assert named or (linked and not row[0].startswith("F")), row
        if state == "tested" and named:
            assert not all(is_long(*one) for one in named), row
            assert "skipped where" not in row[-1], row
        if state == "tested at length":
            assert all(is_long(*one) for one in named), row


def is_long(test: str, path: str) -> bool:
    """Whether the default tier leaves all of a test out."""
    module = ast.parse((DOCUMENT.parent / path).read_text())
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            if "pytest.mark.slow" in ast.unparse(node.value):
                return True
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == test:
            marks = {ast.unparse(decorator) for decorator in node.decorator_list}
            if marks & {"pytest.mark.slow", "at_scale('full')"}:
                return True
    return False
